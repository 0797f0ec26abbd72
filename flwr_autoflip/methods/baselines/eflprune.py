"""EFLPrune (Wu, Song, Zeng 2023): baseline, a new sub-network before every release.

Complex & Intelligent Systems, doi:10.1007/s40747-023-01120-5. Of it we know the
abstract; criteria are those of AutoFLIP's comparison (arXiv:2405.10271v3, Fig. 7) in
their standard forms. The server chooses from its own weights, nodes train the small
network, and the full model keeps the old value of what was not sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import AutoFlipError
from ...graph.layout import Arrays, Group, Layout, TensorSpec
from ...graph.plan import Plan, dense_plan
from ..guidance import Report, split_by_group, sum_by_unit, unit_scores
from ..policy import (
    Policy,
    Previous,
    UnitCounts,
    unit_plan,
    weight_costs,
    weight_tensors,
)
from ..threshold import MacShare, Threshold, select

Criterion = Literal["random", "l1", "l2", "similarity", "bn", "magnitude"]


@dataclass(frozen=True)
class EflPrune(Policy):
    """Keep the units, or single weights, that the weights at hand rank first.

    Parameters
    ----------
    criterion : {"random", "l1", "l2", "similarity", "bn", "magnitude"}
        ``"random"``: drawn anew every round. ``"l1"``, ``"l2"``: the norm of a unit's
        own parameters. ``"similarity"``: :func:`distances`. ``"bn"``:
        :func:`batch_norm_scales`. ``"magnitude"``: single weights by ``|w|``.
    threshold : Threshold or mapping of str to int
        How many: a target such as ``Compression`` or ``MacShare``, or a count a group.
    seed : int (default: 0)
        Of ``"random"``.
    round_to : int (default: 1)
        Keep a multiple of this many units a group.
    """

    criterion: Criterion
    threshold: Threshold | UnitCounts
    seed: int = 0
    round_to: int = 1

    renewed = "weights"

    def __post_init__(self) -> None:
        if self.criterion not in get_args(Criterion):
            raise AutoFlipError(
                f"criterion must be one of {get_args(Criterion)}, got "
                f"{self.criterion!r}."
            )
        if self.criterion == "magnitude" and isinstance(
            self.threshold, Mapping | MacShare
        ):
            raise AutoFlipError(
                "criterion='magnitude' prunes single weights, so it takes a threshold "
                "such as '2x', not units a group or a share of the MACs."
            )

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Make the plan of the weights at hand; see :class:`.base.Policy`."""
        if self.criterion == "magnitude" and not isinstance(
            self.threshold, Mapping | MacShare
        ):
            whole = dense_plan(layout)
            sizes = {t.name: np.abs(weights[t.name]) for t in weight_tensors(layout)}
            mask = select(sizes, self.threshold, weight_costs(layout, whole))
            return Plan(layout, whole.keep, mask)
        scores = self.rank_units(server_round, layout, weights, reports)
        return unit_plan(layout, scores, self.threshold, self.round_to)

    def rank_units(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
    ) -> Mapping[str, NDArray[Any]]:
        """Score units by the criterion; see :class:`.base.Policy`."""
        trainable = [t.name for t in layout.tensors if t.trainable]
        match self.criterion:
            case "random":
                generator = np.random.default_rng([self.seed, server_round])
                return {g.name: generator.random(g.size) for g in layout.groups}
            case "similarity":
                return distances(layout, weights)
            case "bn":
                return batch_norm_scales(layout, weights)
            case "l2":
                squares = {n: np.square(weights[n], dtype=float) for n in trainable}
                return {
                    name: np.sqrt(s) for name, s in unit_scores(layout, squares).items()
                }
            case _:
                return super().rank_units(server_round, layout, weights, reports)


def distances(layout: Layout, weights: Arrays) -> dict[str, NDArray[np.float64]]:
    """Score a unit by how far it is from the other units of its group.

    ``d_i = sum_j ||w_i - w_j||_2`` over units' own parameters: units most like the
    others, and so most easily replaced by them, score lowest and go first (He et al.
    2019, arXiv:1811.00250, Eq. 4 and the remarks on it).

    Parameters
    ----------
    layout : Layout
    weights : mapping of str to ndarray
        Dense arrays.

    Returns
    -------
    dict of str to ndarray
        Group name to ``(group.size,)`` float64, at least 0.
    """
    return {
        group.name: np.sqrt(_squared_distances(layout, weights, group)).sum(axis=1)
        for group in layout.groups
    }


def _squared_distances(
    layout: Layout, weights: Arrays, group: Group
) -> NDArray[np.float64]:
    """``(size, size)`` squared Euclidean distances, added up tensor by tensor."""
    total = np.zeros((group.size, group.size))
    for spec in layout.tensors:
        for axis in spec.own_axes if spec.trainable else ():
            rows = _rows_by_unit(weights[spec.name], spec, axis, group)
            squares = np.square(rows).sum(axis=1)
            total += squares[:, None] + squares - 2 * rows @ rows.T
    np.fill_diagonal(total, 0)
    return np.maximum(total, 0)  # rounding


def _rows_by_unit(
    array: NDArray[Any], spec: TensorSpec, axis: int, group: Group
) -> NDArray[np.float64]:
    """One row a unit, of its slices in their order (an LSTM's unit owns four)."""
    owner = np.asarray(spec.owners[axis]) - group.first
    (mine,) = np.nonzero((owner >= 0) & (owner < group.size))
    mine = mine[np.argsort(owner[mine], kind="stable")]
    counts = np.bincount(owner[mine], minlength=group.size)
    rank = np.arange(len(mine)) - np.repeat(np.cumsum(counts) - counts, counts)
    slices = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)[mine]
    rows = np.zeros((group.size, int(counts.max(initial=0)), slices.shape[1]))
    rows[owner[mine], rank] = slices
    return rows.reshape(group.size, -1)


def batch_norm_scales(
    layout: Layout, weights: Arrays
) -> dict[str, NDArray[np.float64]]:
    """Score a unit by ``|gamma|`` of its BatchNorm (Liu et al. 2017, arXiv:1708.06519).

    Parameters
    ----------
    layout : Layout
    weights : mapping of str to ndarray
        Dense arrays.

    Returns
    -------
    dict of str to ndarray
        Group name to ``(group.size,)`` float64; the mean if a group feeds several
        BatchNorms, and the L1 score where it feeds none.

    Raises
    ------
    AutoFlipError
        If no group has a BatchNorm.
    """
    gammas = [
        t.name
        for t in layout.tensors
        if t.trainable
        and t.name.endswith("weight")
        and t.name.removesuffix("weight") + "running_var" in layout.by_name
    ]
    sums = split_by_group(
        layout, sum_by_unit(layout, {n: np.abs(weights[n]) for n in gammas})
    )
    counts = split_by_group(
        layout, sum_by_unit(layout, {n: np.ones(weights[n].shape) for n in gammas})
    )
    if not any(count.all() for count in counts.values()):
        raise AutoFlipError(
            "criterion='bn' ranks units by BatchNorm's scale, but no group of this "
            "model has a BatchNorm; use criterion='l1'."
        )
    trainable = {t.name: np.abs(weights[t.name]) for t in layout.tensors if t.trainable}
    sizes = unit_scores(layout, trainable)
    return {
        name: sums[name] / counts[name] if counts[name].all() else sizes[name]
        for name in sizes
    }
