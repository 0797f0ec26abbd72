"""Server -> node: what a round asks for, on its way out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from ..graph import pack
from ..graph.codec import VERSION, encode_layout, encode_plan, plan_digest
from ..graph.layout import Arrays
from ..graph.plan import Plan, dense_plan
from ..methods.base import Payload
from . import keys
from .encoding import FLOAT32, Encoding
from .records import records_of, to_arrayrecord

PAYLOADS: dict[keys.Phase, tuple[Payload, ...]] = {
    "train": ("values", "gradients"),
    "explore": ("deviations", "units"),
    "evaluate": ("values",),
    "budget": ("values",),
}
"""What a phase may ask for; where nothing comes back it is called values."""

ROUNDING = 1e-6
"""So far below 0, of the largest, may rounding a sum to 32 bits carry a value."""


@dataclass(frozen=True)
class Instructions:
    """What a round asks of a node.

    Parameters
    ----------
    phase : {"budget", "explore", "train", "evaluate"}
        ``"budget"`` only asks what the node can carry.
    plan : Plan
    values : ndarray
        ``(plan.num_values,)`` float32, on the node as they came out of the wire; none
        with ``"budget"``.
    encoding : Encoding (default: float32)
        Of values both ways.
    regrow : bool (default: False)
        Pruned single weights may come back in training.
    payload : {"values", "gradients", "deviations", "units"} (default: "values")
        What comes back; the last two while exploring, and only then.
    budget : str (default: "")
        The node's budget, which the plan was cut to.
    """

    phase: keys.Phase
    plan: Plan
    values: NDArray[Any]
    encoding: Encoding = FLOAT32
    regrow: bool = False
    payload: Payload = "values"
    budget: str = ""

    @classmethod
    def of(
        cls,
        phase: keys.Phase,
        plan: Plan,
        weights: Arrays,
        encoding: Encoding = FLOAT32,
        **rest: Any,
    ) -> "Instructions":
        """Give instructions with the values that a plan keeps of dense weights."""
        return cls(phase, plan, pack.pack(weights, plan), encoding, **rest)

    @classmethod
    def for_budget(cls, plan: Plan) -> "Instructions":
        """Ask what a node can carry of a plan's dense model; no values travel."""
        return cls("budget", dense_plan(plan.layout), np.zeros(0, np.float32))

    @cached_property
    def reply_plan(self) -> Plan:
        """What comes back: with ``regrow`` every weight of the kept units."""
        return self.plan.without_mask() if self.regrow else self.plan

    @property
    def reply_encoding(self) -> Encoding:
        """How values come back; gradients behind them are plain floats."""
        return FLOAT32 if self.payload == "gradients" else self.encoding

    @cached_property
    def digest(self) -> bytes:
        """Sixteen bytes that name plan and layout together."""
        return plan_digest(encode_plan(self.plan), self.plan.layout)

    @cached_property
    def encoded(self) -> NDArray[Any]:
        """The array that travels down."""
        if self.phase == "budget":
            return self.values
        return self.encoding.encode(self.values, self.plan)

    @cached_property
    def start(self) -> NDArray[Any]:
        """What training starts from, ``(reply_plan.num_values,)``.

        0 for weights that may come back.
        """
        if self.reply_plan is self.plan:
            return self.values
        small = pack.unpack_small(self.values, self.plan)
        return pack.pack_small(small, self.reply_plan)

    def decode(self, data: NDArray[Any]) -> NDArray[Any]:
        """Read what a node trained, ``(reply_plan.num_values,)``, on the server.

        In 16 and 8 bits it sends the change, which is added to the server's own values
        in full precision: what rounding took from them on their way down is not lost.
        Raises ``WireError`` if it cannot be what these instructions asked for.
        """
        plan = self.reply_plan
        values = self.reply_encoding.decode(data, plan)
        if self.reply_encoding != FLOAT32:
            values += self.start
            for spec, part in pack.split_values(values, plan):
                pack.clear_rounding_inplace(spec, part, ROUNDING)
            pack.check_values(values, plan)  # a sum may be beyond what its parts are
        return values


def request_content(
    instructions: Instructions,
    template: RecordDict,
    run: bytes = b"",
    answering: Sequence[str] = (),
) -> RecordDict:
    """Build the content of a request; Flower's NumPyClient adapter can read it, too.

    Of the template, the inner strategy's content, names and config are kept. ``run``
    names the run: what a node keeps of another one is dropped. ``answering`` are groups
    with pruned units that an app behind the mod would still hear from.
    """
    plan = instructions.plan
    configs = records_of(template, ConfigRecord)
    arrays_name = next(iter(records_of(template, ArrayRecord)), keys.ARRAYS)
    config_name = next(iter(configs), keys.CONFIG)
    config: dict[str, Any] = dict(configs.get(config_name, {}))
    config |= {
        keys.VERSION: VERSION,
        keys.PACKAGE: keys.PACKAGE_VERSION,
        keys.PHASE: instructions.phase,
        keys.RUN: run,
        keys.LAYOUT: encode_layout(plan.layout),
        keys.PLAN: encode_plan(plan),
        keys.DTYPE: instructions.encoding.dtype,
    }
    sometimes = {
        keys.PAYLOAD: (instructions.payload, "values"),
        keys.REGROW: (instructions.regrow, False),
        keys.BUDGET: (instructions.budget, ""),
        keys.ANSWERING: (", ".join(answering), ""),
        keys.ARRAYS_NAME: (arrays_name, keys.ARRAYS),
        keys.CONFIG_NAME: (config_name, keys.CONFIG),
    }
    config |= {
        key: given for key, (given, usual) in sometimes.items() if given != usual
    }
    arrays = to_arrayrecord({keys.ARRAY: instructions.encoded})
    records = arrays, ConfigRecord(config)
    names = keys.numpy_names(instructions.phase)
    return RecordDict(dict(zip(names, records, strict=True)))
