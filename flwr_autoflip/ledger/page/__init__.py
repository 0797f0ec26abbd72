"""From ledgers to curves, figures to compare, pictures and a page."""

from .curves import WINDOW, Curve, curve
from .pictures import draw_curves

__all__ = ["WINDOW", "Curve", "curve", "draw_curves"]
