"""How values travel: in 32, 16 or 8 bits, packed or not."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import AutoFlipError
from ..graph.pack import check_values
from ..graph.plan import Plan
from .compress import check_available, compress, decompress
from .quantize import dequantize, quantize, quantize_with_feedback, quantized_size
from .sixteen import from_sixteen, sixteen_size, to_sixteen

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

    def encode(self, values: NDArray[Any], plan: Plan) -> NDArray[Any]:
        """Make the array that travels.

        Parameters
        ----------
        values : ndarray
            ``(plan.num_values,)`` float32.
        plan : Plan

        Returns
        -------
        ndarray
            One-dimensional; uint8 if of 16 or 8 bits, or packed.
        """
        if self.dtype == "int8":
            return self._pack(quantize(values, plan))
        return self._pack(
            to_sixteen(values, plan) if self.dtype == "float16" else values
        )

    def encode_update(
        self, update: NDArray[Any], residual: NDArray[np.float32] | None, plan: Plan
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Round an update, for the way up in 16 or 8 bits: it never gets longer.

        In 16 bits toward 0; in 8 with error feedback.

        Parameters
        ----------
        update : ndarray
            ``(plan.num_values,)``.
        residual : ndarray or None
            Of this node's last update under this plan; 16 bits leave none.
        plan : Plan

        Returns
        -------
        data : ndarray
            As from :meth:`encode`.
        residual : ndarray or None
            ``(plan.num_values,)`` float32, to keep.
        """
        if self.dtype == "float16":
            return self._pack(to_sixteen(update, plan, toward_zero=True)), None
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
            ``(plan.num_values,)`` float32.

        Raises
        ------
        WireError
            On a wrong length, shape or dtype, or values that are not finite.
        """
        if self.dtype == "int8":
            return dequantize(self._unpack(data, quantized_size(plan), "uint8"), plan)
        if self.dtype == "float16":
            words = self._unpack(data, sixteen_size(plan) // 2, "uint16")
            return from_sixteen(words.view(np.uint8) if self.compress else words, plan)
        data = self._unpack(data, plan.num_values, "float32")
        check_values(data, plan)
        return data

    def _pack(self, data: NDArray[Any]) -> NDArray[Any]:
        if not self.compress:
            return data
        # Bytes of equal rank in a number are alike: the packer has to know its length.
        return compress(data.view(np.uint16) if self.dtype == "float16" else data)

    def _unpack(self, data: NDArray[Any], size: int, dtype: str) -> NDArray[Any]:
        return decompress(data, size, dtype) if self.compress else data


FLOAT32 = Encoding()
