"""Who stays: one small file a method, all of the same shape.

A policy is a pure function of (round, layout, weights, reports) -> :class:`Plan`.
AutoFLIP, its presets and every baseline share one strategy, wire, client and ledger,
so that comparisons are fair by construction.
"""

from .autoflip import AutoFlipPolicy
from .base import Policy
from .dense import Dense
from .l1 import L1Units
from .random import RandomUnits

__all__ = ["AutoFlipPolicy", "Dense", "L1Units", "Policy", "RandomUnits"]
