"""AutoFLIP (arXiv:2405.10271v3): guidance -> who stays."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError, AutoFlipWarning
from ..graph.layout import Arrays, Layout, TensorSpec
from ..graph.plan import Mask, Plan, warn_if_nothing_pruned
from .guidance import (
    ClientScale,
    Normalization,
    Report,
    normalize,
    split_by_group,
    sum_by_unit,
    unit_scores,
)
from .policy import Policy, Previous, unit_plan, weight_costs
from .statistics import Running
from .threshold import Absolute, MacShare, Threshold, keep_top, select

Units = Literal["score", "all", "none"]


@dataclass(frozen=True)
class AutoFlipPolicy(Policy):
    """Plans from explorers' deviations.

    Parameters
    ----------
    threshold : Threshold
        Over units' scores with ``units="score"``, over single weights otherwise.
    normalization : {"layer", "client"} (default: "layer")
        Eq. 10; see :func:`flwr_autoflip.methods.guidance.normalize`.
    units : {"score", "all", "none"} (default: "score")
        ``"score"``: a unit stays for the mean guidance of its own parameters. Ours.
        ``"all"``: a unit goes when every one of its parameters is marked (paper).
        ``"none"``: single weights only (authors' code).
    single_weights : Threshold, optional
        With ``units="score"``: prune single weights inside what stays, too.
    guidance_from : {"explorers", "participants"} (default: "explorers")
        One plan from everybody, or one a round from those who take part (paper).
    keep_output : bool (default: True)
        Leave the output layer's weights alone. The paper does not.
    round_to : int (default: 1)
        With ``units="score"``: keep a multiple of this many units a group.
    client_scale : {"tensor", "raw"} (default: "tensor")
        Bring each explorer's deviations to the same mean in every tensor, so that none
        decides by its scale; or take them as they come, as paper and authors' code do.
    trim : float (default: 0)
        Share of explorers left out at either end of every coordinate; 0.5 takes the
        median. See :func:`flwr_autoflip.methods.robust.trimmed_mean`.
    """

    threshold: Threshold
    normalization: Normalization = "layer"
    units: Units = "score"
    single_weights: Threshold | None = None
    guidance_from: Literal["explorers", "participants"] = "explorers"
    keep_output: bool = True
    round_to: int = 1
    client_scale: ClientScale = "tensor"
    trim: float = 0.0

    def __post_init__(self) -> None:
        if self.units not in ("score", "all", "none"):
            raise AutoFlipError(
                f"units must be 'score', 'all' or 'none', got {self.units!r}."
            )
        if self.guidance_from not in ("explorers", "participants"):
            raise AutoFlipError(
                "guidance_from must be 'explorers' or 'participants', got "
                f"{self.guidance_from!r}."
            )
        if self.normalization not in ("client", "layer"):
            raise AutoFlipError(
                "normalization must be 'client' or 'layer', got "
                f"{self.normalization!r}."
            )
        if self.client_scale not in ("tensor", "raw"):
            raise AutoFlipError(
                f"client_scale must be 'tensor' or 'raw', got {self.client_scale!r}."
            )
        if self.single_weights is not None and self.units != "score":
            raise AutoFlipError(
                f"units={self.units!r} already prunes single weights by threshold; "
                "leave single_weights out or use units='score'."
            )
        for_weights = {
            f"units={self.units!r}": None if self.units == "score" else self.threshold,
            "single_weights": self.single_weights,
        }
        for name, threshold in for_weights.items():
            if isinstance(threshold, MacShare):
                raise AutoFlipError(
                    f"{name}: single weights that go save no MACs, so {threshold} "
                    "cannot choose them; give a threshold such as '2x'."
                )

    explores = True

    @property
    def per_round(self) -> bool:
        """Whether this round's participants decide."""
        return self.guidance_from == "participants"

    @property
    def running(self) -> Running | None:
        """What the server keeps of all reports as they come, if all decide."""
        if self.per_round or self.trim:
            return None
        return Running(self.normalization == "client", self.client_scale == "tensor")

    def guidance(self, reports: Sequence[Report]) -> dict[str, NDArray[np.float32]]:
        """Combine explorers' reports (Eq. 10)."""
        return normalize(reports, self.normalization, self.client_scale, self.trim)

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Make the plan of a set of explorers; see :class:`.base.Policy`."""
        self.check_explorers(len(reports))
        guidance = self.guidance(reports)
        plan = (
            self._plan_by_score(layout, guidance)
            if self.units == "score"
            else self._plan_by_weight(layout, guidance)
        )
        warn_if_nothing_pruned(plan, "raise the threshold, or choose threshold='auto'.")
        return plan

    def unit_guidance(
        self, layout: Layout, reports: Sequence[Report]
    ) -> dict[str, NDArray[np.float64]]:
        """Give the mean guidance of each unit's own parameters."""
        return unit_scores(layout, self.guidance(reports))

    def rank_units(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
    ) -> dict[str, NDArray[np.float64]]:
        """Score units by mean guidance; see :class:`.base.Policy`."""
        return self.unit_guidance(layout, reports)

    def check_explorers(self, count: int) -> None:
        """Check the number of explorers before any of them is asked.

        Raises
        ------
        AutoFlipError
            If ``normalization="client"`` has nobody to compare.

        Warns
        -----
        AutoFlipWarning
            For one explorer only, or T_p <= 1/K with ``normalization="client"``.
        """
        low = isinstance(self.threshold, Absolute) and self.threshold.value * count <= 1
        if self.normalization == "client" and count < 2:
            raise AutoFlipError(
                f"normalization='client' compares explorers, got {count}; explore on "
                "more nodes or use normalization='layer'."
            )
        if self.normalization == "client" and low:
            _warn(
                f"{self.threshold} is at most 1/K = 1/{count}: with normalization="
                "'client' guidance is never below 1/K, so this prunes only what no "
                "explorer moved. Raise the threshold."
            )
        elif count == 1:
            _warn(
                "one explorer only: the plan rests on one node's data. Explore on more "
                "nodes."
            )

    def _plan_by_score(
        self, layout: Layout, guidance: Mapping[str, NDArray[np.float32]]
    ) -> Plan:
        plan = unit_plan(
            layout, unit_scores(layout, guidance), self.threshold, self.round_to
        )
        if self.single_weights is None:
            return plan
        _check_by_weight(layout, guidance)
        kept = {
            t.name: plan.take(t.name, guidance[t.name])
            for t in _maskable(layout, self.keep_output)
        }
        chosen = select(kept, self.single_weights, weight_costs(layout, plan))
        masks = {}
        for name, choice in chosen.items():
            masks[name] = np.zeros(layout.by_name[name].shape, np.bool_)
            plan.put(name, masks[name], choice)
        return Plan(layout, plan.keep, masks)

    def _plan_by_weight(
        self, layout: Layout, guidance: Mapping[str, NDArray[np.float32]]
    ) -> Plan:
        _check_by_weight(layout, guidance)
        scores = {t.name: guidance[t.name] for t in _maskable(layout, self.keep_output)}
        whole = Plan(layout, {g.name: np.arange(g.size) for g in layout.groups})
        mask = select(scores, self.threshold, weight_costs(layout, whole))
        if self.units == "none":
            return Plan(layout, whole.keep, mask)
        return Plan(layout, _units_not_all_marked(layout, mask, guidance), mask)


def _warn(text: str) -> None:
    warnings.warn(text, AutoFlipWarning, stacklevel=4)


def _check_by_weight(
    layout: Layout, guidance: Mapping[str, NDArray[np.float32]]
) -> None:
    if not any(t.name in guidance for t in layout.tensors):
        raise AutoFlipError(
            "single weights need guidance a weight, but explorers summed it per unit; "
            "use exploration_payload='update' or 'deviation'."
        )


def _maskable(layout: Layout, keep_output: bool) -> list[TensorSpec]:
    """Trainable tensors, without those of output layers if they are to stay.

    Nobody owns an output layer's slices: its units are the model's outputs. Layers
    excluded by name look the same, and are left alone likewise.
    """
    return [
        t for t in layout.tensors if t.trainable and (t.own_axes or not keep_output)
    ]


def _units_not_all_marked(
    layout: Layout, mask: Mask, guidance: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.int64]]:
    """Drop a unit when its own parameters are all marked (paper, Sec. IV-B)."""
    left = split_by_group(layout, sum_by_unit(layout, mask))
    scores = unit_scores(layout, guidance)
    return {
        name: np.flatnonzero(count if count.any() else keep_top(scores[name], 1))
        for name, count in left.items()
    }
