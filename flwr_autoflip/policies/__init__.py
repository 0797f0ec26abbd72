"""Who stays: one small file a method, all of the same shape.

A policy is a pure function of (round, layout, weights, reports, previous plan) ->
:class:`Plan`.
AutoFLIP, its presets and every baseline share one strategy, wire, client and ledger,
so that comparisons are fair by construction.
"""

from .autoflip import AutoFlipPolicy
from .base import Policy, Previous
from .dense import Dense
from .eflprune import EflPrune
from .l1 import L1Units
from .prunefl import PruneFl
from .random import RandomUnits
from .structured import Structured

__all__ = [
    "AutoFlipPolicy",
    "Dense",
    "EflPrune",
    "L1Units",
    "Policy",
    "Previous",
    "PruneFl",
    "RandomUnits",
    "Structured",
]
