"""Other papers' methods, to compare with."""
