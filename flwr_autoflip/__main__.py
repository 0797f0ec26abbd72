"""``python -m flwr_autoflip``: the same as ``flwr-autoflip``."""

from .cli.main import app

if __name__ == "__main__":
    app(prog_name="flwr-autoflip")
