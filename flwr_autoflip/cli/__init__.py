"""The command line ``flwr-autoflip``."""
