"""The method itself, as pure functions; nothing here imports Flower."""
