"""How many units each layer keeps when all together may cost so much."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph.layout import Layout

_SWEEPS = 60
_HALVINGS = 60
_ONE_IN = 10


def floors(layout: Layout) -> dict[str, int]:
    """Say how many units of each group stay whatever a threshold asks for.

    A tenth, rounded up: a layer that is left with a unit or two lets nothing through,
    and what that saves is better saved elsewhere.

    Returns
    -------
    dict of str to int
        Group name to a number of units, at least 1.
    """
    return {group.name: -(-group.size // _ONE_IN) for group in layout.groups}


def allocate(
    layout: Layout, share: float, exponent: float, least: Mapping[str, int]
) -> dict[str, int]:
    """Cut each layer as far as what that saves is worth.

    Of all networks with at most this share of the MACs that can shrink, look for the
    one that loses least, where a group of units that keeps k of its n loses
    (n / k) ** exponent, and where saved parameters count as much as saved MACs (both as
    shares of the dense model's). So a narrow layer that costs next to nothing, such as
    an embedding or the squeeze of a squeeze-and-excitation, stays whole, and what is
    wide and dear goes first. An even share of every layer would cut all alike.

    Parameters
    ----------
    layout : Layout
    share : float
        Largest share, in (0, 1], of the dense model's MACs without those of layers
        that no unit touches.
    exponent : float
        Above 0, finite. The larger, the nearer all layers come to an even share.
    least : mapping of str to int
        Group name to its fewest units, at least 1; see :func:`floors`.

    Returns
    -------
    dict of str to int
        Group name to how many units stay, ``least`` even above the target. A larger
        share never keeps fewer.
    """
    costs = _Costs.of(layout)
    sizes = np.array([group.size for group in layout.groups], np.float64)
    lowest = np.array([least[group.name] for group in layout.groups], np.float64)
    fixed = costs.fixed_macs
    most = share * (costs.macs(sizes) - fixed) * (1 + 1e-12)
    # Widths on a logarithmic scale: at the highest all stay, at the lowest the fewest.
    low, high = -60.0, 60.0
    counts = sizes
    if share < 1:
        counts = lowest
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            wanted = costs.best(lowest, sizes, 2.0**middle, exponent)
            found = np.floor(wanted + 1e-9)
            if costs.macs(found) - fixed <= most:
                low, counts = middle, found
            else:
                high = middle
    return {g.name: int(n) for g, n in zip(layout.groups, counts, strict=True)}


@dataclass(frozen=True)
class _Costs:
    """MACs and parameters as sums over tensors of products over axes.

    ``per_unit[a]`` says how many indices of axis a one unit of each group owns,
    ``fixed[a]`` how many nobody owns; ``tensor[a]`` is the axis's tensor.
    """

    per_unit: NDArray[np.float64]
    fixed: NDArray[np.float64]
    tensor: NDArray[np.int64]
    macs_per_weight: NDArray[np.float64]
    weight: NDArray[np.float64]
    """MACs and parameters of one element, each as a share of the dense model's."""
    fixed_macs: float

    @classmethod
    def of(cls, layout: Layout) -> "_Costs":
        group_of = np.repeat(
            np.arange(len(layout.groups)), [g.size for g in layout.groups]
        )
        sizes = np.array([g.size for g in layout.groups], np.float64)
        per_unit, fixed, tensor = [], [], []
        for number, spec in enumerate(layout.tensors):
            for length, owners in zip(spec.shape, spec.owners, strict=True):
                some = np.zeros(0, np.int64) if owners is None else owners
                owned = some[some >= 0]
                counts = np.bincount(group_of[owned], minlength=len(sizes))
                per_unit.append(counts / sizes)
                fixed.append(length - len(owned))
                tensor.append(number)
        macs = np.array([t.macs_per_weight for t in layout.tensors])
        values = np.array([t.size for t in layout.tensors], np.float64)
        trained = np.array([t.trainable for t in layout.tensors], np.float64)
        weight = macs / np.maximum(macs @ values, 1) + trained / (trained @ values)
        stays = np.array([t.name in layout.fixed for t in layout.tensors])
        return cls(
            np.array(per_unit),
            np.array(fixed),
            np.array(tensor),
            macs,
            weight,
            float(macs[stays] @ values[stays]),
        )

    def values(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Count each tensor's elements."""
        values = np.ones(len(self.weight))
        np.multiply.at(values, self.tensor, self.per_unit @ counts + self.fixed)
        return values

    def macs(self, counts: NDArray[np.float64]) -> float:
        return float(self.macs_per_weight @ self.values(counts))

    def slopes(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give what one more unit of each group costs."""
        lengths = self.per_unit @ counts + self.fixed
        terms = (self.weight * self.values(counts))[self.tensor]
        return (terms / lengths) @ self.per_unit

    def best(
        self,
        lowest: NDArray[np.float64],
        sizes: NDArray[np.float64],
        width: float,
        exponent: float,
    ) -> NDArray[np.float64]:
        """Minimise the sum of (n / k)**p plus cost at a price that ``width`` says.

        There n**p / k**(p + 1) is as many times the slope in every group, so that
        k = width * n**(p / (p + 1)) / slope**(1 / (p + 1)).
        """
        counts, root = sizes, 1 / (exponent + 1)
        for _ in range(_SWEEPS):
            slopes = self.slopes(counts) + 1e-300
            wanted = width * sizes ** (1 - root) / slopes**root
            # Halfway on a logarithmic scale: layers' wishes depend on each other.
            counts = np.clip(np.sqrt(counts * wanted), lowest, sizes)
        return counts
