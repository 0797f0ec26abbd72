"""How many units each layer keeps when all together may cost so much."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .layout import Layout

_SWEEPS = 60
_HALVINGS = 60


def allocate(layout: Layout, share: float, exponent: float) -> dict[str, int]:
    """Cut each layer as far as what that saves is worth.

    Of all networks with at most this share of the MACs, look for the one that loses
    least, where a group of units that keeps k of its n loses (n / k) ** exponent, and
    where saved parameters count as much as saved MACs (both as shares of the dense
    model's). So a narrow layer that costs next to nothing, such as an embedding or the
    squeeze of a squeeze-and-excitation, stays whole, and what is wide and dear goes
    first. An even share of every layer would cut all alike.

    Parameters
    ----------
    layout : Layout
    share : float
        Largest share of the dense model's MACs, in (0, 1].
    exponent : float
        Above 0, finite. The larger, the nearer all layers come to an even share.

    Returns
    -------
    dict of str to int
        Group name to how many units stay, at least one even above the target. A larger
        share never keeps fewer.
    """
    costs = _Costs.of(layout)
    sizes = np.array([group.size for group in layout.groups], np.float64)
    dense = costs.macs(sizes)
    # Widths on a logarithmic scale: at the highest all stay, at the lowest one each.
    low, high = -60.0, 60.0
    counts = sizes
    if share < 1:
        counts = np.ones_like(sizes)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = np.floor(costs.best(sizes, 2.0**middle, exponent) + 1e-9)
            if costs.macs(found) <= share * dense * (1 + 1e-12):
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
        return cls(np.array(per_unit), np.array(fixed), np.array(tensor), macs, weight)

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
        self, sizes: NDArray[np.float64], width: float, exponent: float
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
            counts = np.clip(np.sqrt(counts * wanted), 1, sizes)
        return counts
