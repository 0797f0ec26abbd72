"""A Flower app that exists already."""
