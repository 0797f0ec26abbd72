"""The paper's comparison as a Flower app; the repository root is on the path."""
