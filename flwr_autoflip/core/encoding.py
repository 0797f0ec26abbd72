"""How values travel: in 32, 16 or 8 bits, packed or not."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .compress import check_available, compress, decompress
from .errors import AutoFlipError
from .plan import Plan
from .quantize import (
    dequantize,
    quantize,
    quantize_with_feedback,
    quantized_size,
)
from .values import check_values

ValueDtype = Literal["float32", "float16", "int8"]
DTYPES: tuple[ValueDtype, ...] = get_args(ValueDtype)


@dataclass(frozen=True)
class Encoding:
    """Turn a plan's values into the one array that travels, and back.

    Parameters
    ----------
    dtype : {"float32", "float16", "int8"} (default: "float32")
    compress : bool (default: False)
        Pack the bytes without loss; see :mod:`.compress`.

    Raises
    ------
    AutoFlipError
        On another dtype, or without the library that packs.
    """

    dtype: str = "float32"
    compress: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise AutoFlipError(
                f"value_dtype must be one of {DTYPES}, got {self.dtype!r}."
            )
        if self.compress:
            check_available()

    @property
    def float_dtype(self) -> str:
        """Dtype of values before :meth:`encode` and after :meth:`decode`."""
        return "float32" if self.dtype == "int8" else self.dtype

    def encode(self, values: NDArray[Any], plan: Plan) -> NDArray[Any]:
        """Make the array that travels.

        Parameters
        ----------
        values : ndarray
            ``(plan.num_values,)`` of :attr:`float_dtype`.
        plan : Plan

        Returns
        -------
        ndarray
            One-dimensional; uint8 if quantised or packed.
        """
        return self._pack(quantize(values, plan) if self.dtype == "int8" else values)

    def encode_update(
        self, update: NDArray[Any], residual: NDArray[np.float32] | None, plan: Plan
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Quantise an update with error feedback, for the way up in 8 bits.

        Parameters
        ----------
        update : ndarray
            ``(plan.num_values,)``.
        residual : ndarray or None
            Of this node's last update under this plan.
        plan : Plan

        Returns
        -------
        data : ndarray
            As from :meth:`encode`.
        residual : ndarray
            ``(plan.num_values,)`` float32, to keep.
        """
        data, residual = quantize_with_feedback(update, residual, plan)
        return self._pack(data), residual

    def decode(self, data: NDArray[Any], plan: Plan) -> NDArray[Any]:
        """Read :meth:`encode`.

        Parameters
        ----------
        data : ndarray
        plan : Plan

        Returns
        -------
        ndarray
            ``(plan.num_values,)`` of a floating dtype.

        Raises
        ------
        WireError
            On a wrong length, shape or dtype, or values that are not finite.
        """
        if self.compress:
            eight = self.dtype == "int8"
            size = quantized_size(plan) if eight else plan.num_values
            data = decompress(data, size, "uint8" if eight else self.dtype)
        if self.dtype == "int8":
            return dequantize(data, plan)
        check_values(data, plan)
        return data

    def _pack(self, data: NDArray[Any]) -> NDArray[Any]:
        return compress(data) if self.compress else data


FLOAT32 = Encoding()
