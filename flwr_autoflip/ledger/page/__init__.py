"""From ledgers to curves, figures to compare, and a page."""
