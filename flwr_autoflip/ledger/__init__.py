"""What every round cost: rows, MACs and memory of models, a page to look at."""
