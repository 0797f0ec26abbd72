"""Who stays: one small file a method, all of the same shape.

A policy is a pure function of (round, layout, weights, reports, previous plan) ->
:class:`Plan`.
AutoFLIP, its presets and every baseline share one strategy, wire, client and ledger,
so that comparisons are fair by construction.
"""

from .autoflip import AutoFlipPolicy
from .baselines.eflprune import EflPrune
from .baselines.prunefl import PruneFl
from .baselines.structured import Structured
from .dense import Dense
from .l1 import L1Units
from .policy import Policy, Previous
from .random import RandomUnits

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
