"""The stand-in for Flower's app is no test."""

collect_ignore = ["flower_app"]
