"""How values travel: in 32, 16 or 8 bits, and reports in 16.

Values in 32 bits are an array of float32. In 16 and 8 bits they are bytes, little
endian, tensors in the layout's order. Buffers stay as they are: running statistics may
be of any size, and counters of batches pass float16's largest number, 65,504.

=====================  ================  ============================================
bytes, float16         bytes, int8       meaning
=====================  ================  ============================================
none                   4 a tensor        its scale, float32; trainable tensors only
4 a buffer's value     the same          the value itself, float32
2 a kept weight        1 a kept weight   float16, or int8 times the tensor's scale
=====================  ================  ============================================
"""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError, WireError
from ..graph.pack import check_values, split_values
from ..graph.plan import Plan
from ..methods.base import ValueDtype

DTYPES: tuple[ValueDtype, ...] = get_args(ValueDtype)
LEVELS = 127
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Encoding:
    """Turn a plan's values into the one array that travels, and back."""

    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise AutoFlipError(
                f"value_dtype must be one of {DTYPES}, got {self.dtype!r}."
            )

    def encode(self, values: NDArray[Any], plan: Plan) -> NDArray[Any]:
        """Make the array that travels of ``(plan.num_values,)`` float32.

        Rounding is to the nearest: in 8 bits no value is off by more than half its
        tensor's scale, which is its largest value over 127. Raises ``WireError`` if a
        value is not finite, or beyond what 16 bits hold.
        """
        return values if self.dtype == "float32" else self._encode(values, plan)

    def encode_update(
        self, update: NDArray[Any], residual: NDArray[np.float32] | None, plan: Plan
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Round an update, for the way up in 16 or 8 bits: it never gets longer.

        In 16 bits each weight is rounded toward 0. In 8, with error feedback: what
        rounding left of earlier updates, the residual, is sent as well, so that over
        many rounds the sum of what is sent is the sum of what was meant, to one
        rounding (Seide et al., 2014; Karimireddy et al., arXiv:1901.09847). But no
        tensor's update leaves with a larger L2 norm than it has here: whoever bounded
        it, as clipping for differential privacy does, bounded what the server gets.
        What that takes away is left for the next time, too. Gives bytes as
        :meth:`encode` does, and the residual to keep, of which 16 bits leave none.
        """
        if self.dtype == "float16":
            return self._encode(update, plan, update), None
        meant = update.astype(np.float32)
        if residual is not None:
            meant += residual
        data = self._encode(meant, plan, update)
        meant -= self.decode(data, plan)
        return data, meant

    def _encode(
        self, values: NDArray[Any], plan: Plan, limits: NDArray[Any] | None = None
    ) -> NDArray[np.uint8]:
        """Write values as bytes; with limits no tensor gets longer than it is there."""
        if self.dtype == "int8" and not np.isfinite(values).all():
            raise WireError("values must be finite to be rounded; training diverged.")
        scales, buffers, weights = [], [], []
        bounds = split_values(values if limits is None else limits, plan)
        for (spec, part), (_, bound) in zip(
            split_values(values, plan), bounds, strict=True
        ):
            limit = None if limits is None else bound
            if not spec.trainable:
                buffers.append(part.astype("<f4"))
            elif self.dtype == "float16":
                weights.append(_to_sixteen(part, spec.name, limit is not None))
            else:
                scale, steps = _to_eight(part, limit)
                scales.append(scale)
                weights.append(steps)
        whole = [np.array(scales, "<f4"), *buffers, *weights]
        return np.concatenate([array.view(np.uint8) for array in whole])

    def decode(self, data: NDArray[Any], plan: Plan) -> NDArray[Any]:
        """Read :meth:`encode`: ``(plan.num_values,)`` float32.

        Raises ``WireError`` on a wrong length, shape or dtype, a scale that is
        negative, or values that are not finite or too large.
        """
        if self.dtype == "float32":
            check_values(data, plan)
            return data
        sixteen, kept = self.dtype == "float16", plan.num_parameters
        tensors = sum(spec.trainable for spec in plan.layout.distinct)
        scaled, buffered = 4 * tensors * (not sixteen), 4 * (plan.num_values - kept)
        size = scaled + buffered + (1 + sixteen) * kept
        if data.shape != (size,) or data.dtype != np.uint8:
            raise WireError(
                f"values: expected {size} bytes of {self.dtype} values, got "
                f"{data.dtype} {data.shape}."
            )
        head, middle, rest = np.split(data, [scaled, scaled + buffered])
        scales, buffers = head.view("<f4"), middle.view("<f4")
        weights = rest.view("<f2" if sixteen else np.int8)
        if not np.isfinite(scales).all() or (scales < 0).any():
            raise WireError("values: a tensor's scale is negative, NaN or infinite.")
        values, scale = np.empty(plan.num_values, np.float32), iter(scales)
        for spec, part in split_values(values, plan):
            if not spec.trainable:
                part[:], buffers = buffers[: part.size], buffers[part.size :]
                continue
            part[:], weights = weights[: part.size], weights[part.size :]
            if not sixteen:
                with np.errstate(over="ignore"):  # a foreign scale may be anything
                    part *= next(scale)
        check_values(values, plan)
        return values


FLOAT32 = Encoding()


def largest(values: NDArray[Any]) -> Any:
    """Give the largest absolute value, 0 of none, without an array of them."""
    return max(values.max(initial=0), -values.min(initial=0))


def _to_sixteen(part: NDArray[Any], name: str, toward_zero: bool) -> NDArray[Any]:
    if not (high := largest(part)) <= LARGEST_HALF:
        raise WireError(
            f"tensor {name!r} has a weight of size {high:.3g}, and 16 bits hold no "
            "more than 65504; did training diverge? If not, set value_dtype='float32'."
        )
    half = part.astype("<f2")
    if toward_zero:
        larger = np.abs(half, dtype=np.float32) > np.abs(part)
        half[larger] = np.nextafter(half[larger], np.float16(0))
    return half


def _to_eight(
    part: NDArray[Any], limit: NDArray[Any] | None
) -> tuple[np.float32, NDArray[np.int8]]:
    """Give a tensor's scale, and its values in steps of it, no longer than a limit."""
    scale = np.float32(largest(part)) / np.float32(LEVELS)
    # A scale of 0 stands for zeros; below float32's normal range nothing is lost.
    steps = part / scale if scale > 0 else np.zeros(part.shape)
    steps = np.rint(np.clip(steps, -LEVELS, LEVELS))
    if limit is not None and (length := norm(steps)) > 0:
        exact = norm(limit) / length
        rounded = np.float32(exact)
        if rounded > exact:
            rounded = np.nextafter(rounded, np.float32(0))
        scale = min(scale, rounded)
    return scale, steps.astype(np.int8)


def norm(values: NDArray[Any]) -> float:
    """Give the L2 norm of flat values, summed in float64."""
    return float(np.sqrt(np.einsum("i,i->", values, values, dtype=np.float64)))


# --- Reports: 16 bits and a scale, so that small numbers survive ---


def to_half(values: NDArray[Any]) -> tuple[NDArray[np.float16], float]:
    """Scale by a power of two into float16's range; give the scale as well.

    Divided by it, values come back to about one part in 2000 over 27 bits of range.
    Raises ``WireError`` if one is not finite.

    Examples
    --------
    >>> half, scale = to_half(np.float32([1e-9, -2e-9]))
    >>> np.allclose(from_half(half, scale), [1e-9, -2e-9], rtol=1e-3, atol=0)
    True
    """
    high = float(np.max(np.abs(values), initial=0.0))
    if not np.isfinite(high):
        raise WireError("a report must be finite; training diverged on this node.")
    exponent = 14 - int(np.frexp(high)[1]) if high > 0 else 0
    scale = float(np.ldexp(1.0, min(exponent, 120)))
    return (np.asarray(values, np.float64) * scale).astype(np.float16), scale


def from_half(half: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Undo :func:`to_half`; ``WireError`` unless the scale is positive and finite."""
    if not (np.isfinite(scale) and scale > 0):
        raise WireError(f"a report's scale must be positive and finite, got {scale}.")
    with np.errstate(over="ignore"):  # a foreign scale may be anything
        out = np.empty(np.shape(half), np.float32)
        np.divide(half, scale, out=out, dtype=np.float64, casting="unsafe")
    return out
