"""``nn.Module`` -> layout: labels that move from operator to operator, then a proof."""
