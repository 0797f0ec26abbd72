"""The numbers behind Figures 4, 7, 8 and 9, as plain functions of finished runs."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..methods import EFLPRUNE_OWN, EXPLORATIONS, THRESHOLDS
from ..records import Methods, Outcome
from .tables import BASELINE, Cell

PANELS = {
    "AutoFLIP, guided, random units": ("autoflip", "guided", "random"),
    "FedAvg, 8 bits": ("fedavg-int8",),
    "AutoFLIP to the letter, and the authors'": ("autoflip-paper", "autoflip-authors"),
    "EFLPrune, AutoFLIP's parameters": [f"eflprune-{c}" for c in EFLPRUNE_OWN],
    "EFLPrune, its own size": [f"eflprune-{c}-own" for c in EFLPRUNE_OWN],
    "PruneFL": ("prunefl", "prunefl-own"),
    "Structured": [
        *("structured", "structured-own"),
        *("structured-restart", "structured-restart-own"),
    ],
}
"""Figure 7: two dozen lines cannot be told apart in one panel."""
VARIANCES = (BASELINE, "autoflip", "random")

Series = dict[str, list[Any]]
"""``mean``, ``low`` and ``high`` over seeds, and the ``seeds``."""


def over_seeds(rows: Mapping[int, ArrayLike]) -> Series:
    """Give mean and range over seeds, up to the shortest; what is NaN is None."""
    arrays = [np.asarray(values, float) for values in rows.values()]
    length = min(map(len, arrays))
    stack = np.stack([values[:length] for values in arrays])
    found = {"mean": stack.mean(0), "low": stack.min(0), "high": stack.max(0)}
    plain = {
        key: [None if np.isnan(value) else float(f"{value:.6g}") for value in values]
        for key, values in found.items()
    }
    return plain | {"seeds": list(rows)}


def variances(methods: Methods) -> dict[str, Series]:
    """Figure 4: Eq. 4, a round each up to FedAvg's last; empty unless both have it."""
    found = {}
    for name in VARIANCES:
        rows = {
            one.seed: one.result["variances"][: one.equal_rounds]
            for one in methods.get(name, ())
            if one.result.get("variances")
        }
        if rows:
            found[name] = over_seeds(rows)
    return found if {BASELINE, "autoflip"} <= set(found) else {}


def curves(methods: Methods) -> dict[str, dict[str, Series]]:
    """Figure 7: trailing means of accuracy, panel -> method.

    FedAvg and AutoFLIP are in every panel.
    """
    panels = {}
    for title, names in PANELS.items():
        if any(name in methods for name in names):
            shown = dict.fromkeys((BASELINE, "autoflip", *names))
            panels[title] = {
                name: over_seeds(
                    {one.seed: one.curve.smooth() for one in methods[name]}
                )
                for name in shown
                if name in methods
            }
    return panels


def exploration(methods: Methods) -> list[dict[str, Any]]:
    """Figure 8: a point for each fraction of nodes and number of epochs."""
    points = []
    for name in EXPLORATIONS:
        if name in methods:
            fraction, epochs = EXPLORATIONS[name].figures
            spent = [
                one.result["exploration"]["macs"] / one.result["macs"][one.equal_rounds]
                for one in methods[name]
            ]
            points.append(
                {
                    "fraction": fraction,
                    "epochs": epochs,
                    "top1": _final_top1(methods[name]).describe(),
                    "exploration_share_of_macs": float(np.mean(spent)),
                }
            )
    return points


def thresholds(methods: Methods) -> list[dict[str, Any]]:
    """Figure 9: a point for each T_p; what is kept is the deployable network's."""
    points = []
    for name in THRESHOLDS:
        if name in methods:
            plans = [one.result["plan"] for one in methods[name]]
            dense = [plan["dense_parameters"] for plan in plans]
            filled = [plan["parameters"] for plan in plans]  # what travels
            built = [plan["parameters"] + plan["zeros"] for plan in plans]
            points.append(
                {
                    "threshold": THRESHOLDS[name].figures[0],
                    "top1": _final_top1(methods[name]).describe(),
                    "parameters_kept": float(np.mean(np.divide(built, dense))),
                    "nonzero_kept": float(np.mean(np.divide(filled, dense))),
                }
            )
    return points


def _final_top1(runs: Iterable[Outcome]) -> Cell:
    """Give the mean of the last five evaluations at equal rounds."""
    return Cell({one.seed: one.curve.mean_until(one.equal_rounds) for one in runs})
