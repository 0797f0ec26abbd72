"""``python -m examples.paper``."""

from .cli import main

if __name__ == "__main__":
    main()
