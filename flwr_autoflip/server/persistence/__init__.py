"""A run on disk: checkpoints, reports, and what an inner strategy remembers."""
