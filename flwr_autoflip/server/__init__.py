"""The server: AutoFlip around another strategy."""
