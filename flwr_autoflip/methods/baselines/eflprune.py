"""EFLPrune (Wu, Song, Zeng 2023): baseline, a new sub-network for every round.

Complex & Intelligent Systems, doi:10.1007/s40747-023-01120-5. Of it we know the
abstract; criteria are those of AutoFLIP's comparison (arXiv:2405.10271v3, Fig. 7) in
their standard forms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import AutoFlipError
from ...graph.layout import Arrays, Group, Layout, TensorSpec
from ...graph.plan import Plan, dense_plan
from ..base import Round, Scores, State
from ..guidance import l1_scores, split_by_group, sum_by_unit, unit_scores
from ..random import check_random, draw
from ..threshold import Kept, MacRatio, select
from ..units import UnitMethod, weight_tensors

Criterion = Literal["random", "l1", "l2", "similarity", "bn", "magnitude"]


@dataclass(frozen=True)
class EFLPrune(UnitMethod[State]):
    """Keep the units, or single weights, that the weights at hand rank first.

    A plan is made from the global weights after every round; nodes train the small
    network, and the full model keeps the last value of what was not sent.

    Parameters
    ----------
    criterion : {"random", "l1", "l2", "similarity", "bn", "magnitude"}
        ``"random"``: drawn anew every round. ``"l1"``, ``"l2"``: the norm of a unit's
        own parameters. ``"similarity"``: the sum of its distances to the other units
        of its group, so that the most replaceable are pruned first (He et al. 2019,
        arXiv:1811.00250, Eq. 4 and the remarks on it). ``"bn"``: ``|gamma|`` of its
        BatchNorm (Liu et al. 2017, arXiv:1708.06519); L1 in groups without one.
        ``"magnitude"``: single weights by ``|w|``.
    seed : int (default: 0)
        Of ``"random"``.
    evaluates_dense : bool (default: False)
        Evaluate the full model, too.
    macs, threshold, round_to
        How many units; see :class:`.UnitMethod`. With ``"magnitude"`` a threshold for
        single weights such as ``"2x"``; left out, ``"4x"``.

    Raises
    ------
    AutoFlipError
        On another criterion, or a target that it cannot use.
    """

    criterion: Criterion
    seed: int = 0
    evaluates_dense: bool = False

    def __post_init__(self) -> None:
        if self.criterion not in get_args(Criterion):
            raise AutoFlipError(
                f"criterion must be one of {get_args(Criterion)}, got "
                f"{self.criterion!r}."
            )
        single = self.criterion == "magnitude"
        if single and self.macs is None and self.threshold is None:
            object.__setattr__(self, "threshold", "4x")
        super().__post_init__()
        if single and isinstance(self.target, Mapping | MacRatio):
            raise AutoFlipError(
                "criterion='magnitude' prunes single weights, which save no MACs and "
                "have no units; give a threshold such as '2x' (parameters), got "
                f"{self.target}."
            )
        if self.criterion == "random":
            check_random(self.target)

    def begin(self, layout: Layout, weights: Arrays) -> tuple[State, Arrays]:
        """Make a plan of the initial weights; see :meth:`.Method.begin`."""
        return self._state(layout, weights, 0), weights

    def learn(self, state: State, done: Round) -> tuple[State, Arrays]:
        """Make a plan of the round's weights; see :meth:`.Method.learn`."""
        return self._state(state.plan.layout, done.weights, done.number), done.weights

    def _state(self, layout: Layout, weights: Arrays, number: int) -> State:
        target = self.target
        if self.criterion != "magnitude" or isinstance(target, Mapping):
            scores = self._scores(layout, weights, number)
            return State(self.choose(layout, scores), scores)
        sizes = {t.name: np.abs(weights[t.name]) for t in weight_tensors(layout)}
        trainable = [t for t in layout.tensors if t.trainable and t.name not in sizes]
        never = sum(t.size for t in trainable if t.name in layout.fixed)
        rest = sum(t.size for t in trainable) - never

        def parameters(kept: Kept) -> float:
            count = rest + sum(int(np.count_nonzero(mask)) for mask in kept.values())
            return count / (layout.num_parameters - never)

        mask = select(sizes, target, parameters)
        return State(Plan(layout, dense_plan(layout).keep, mask))

    def _scores(self, layout: Layout, weights: Arrays, number: int) -> Scores:
        match self.criterion:
            case "random":
                return draw(layout, self.seed, number)
            case "similarity":
                return {g.name: _distances(layout, weights, g) for g in layout.groups}
            case "bn":
                return _batch_norm_scales(layout, weights)
            case "l2":
                trainable = [t.name for t in layout.tensors if t.trainable]
                squares = {n: np.square(weights[n], dtype=float) for n in trainable}
                return {n: np.sqrt(s) for n, s in unit_scores(layout, squares).items()}
            case _:
                return l1_scores(layout, weights)


def _distances(layout: Layout, weights: Arrays, group: Group) -> NDArray[np.float64]:
    """Sum ``||w_i - w_j||_2`` over a group, of units' own parameters."""
    total = np.zeros((group.size, group.size))  # squares, tensor by tensor
    for spec in layout.tensors:
        for axis in spec.own_axes if spec.trainable else ():
            rows = _rows_by_unit(weights[spec.name], spec, axis, group)
            squares = np.square(rows).sum(axis=1)
            total += squares[:, None] + squares - 2 * rows @ rows.T
    np.fill_diagonal(total, 0)
    distances: NDArray[np.float64] = np.sqrt(np.maximum(total, 0)).sum(axis=1)
    return distances  # rounding may leave squares below 0


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


def _batch_norm_scales(layout: Layout, weights: Arrays) -> Scores:
    """Give ``|gamma|`` a unit, the mean of several; L1 where a group feeds none."""
    scales = {
        t.name: np.abs(weights[t.name])
        for t in layout.tensors
        if t.trainable
        and t.name.removesuffix("weight") + "running_var" in layout.by_name
    }
    ones = {name: np.ones_like(scale) for name, scale in scales.items()}
    sums = split_by_group(layout, sum_by_unit(layout, scales))
    counts = split_by_group(layout, sum_by_unit(layout, ones))
    if not any(count.all() for count in counts.values()):
        raise AutoFlipError(
            "criterion='bn' ranks units by BatchNorm's scale, but no group of this "
            "model has a BatchNorm; use criterion='l1'."
        )
    sizes = l1_scores(layout, weights)
    return {
        name: sums[name] / counts[name] if counts[name].all() else sizes[name]
        for name in sizes
    }
