"""An app of the shape that flwr new makes."""
