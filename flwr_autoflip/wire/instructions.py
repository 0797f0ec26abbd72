"""Server -> node: what a round asks for, on its way out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from ..graph.codec import VERSION, encode_layout, encode_plan, plan_digest
from ..graph.layout import Arrays
from ..graph.pack import pack, pack_small, unpack_small
from ..graph.plan import Plan, dense_plan
from ..methods.base import Payload
from . import keys
from .encoding import FLOAT32, Encoding
from .keys import Phase, numpy_names
from .records import records_of, to_arrayrecord

PAYLOADS: dict[Phase, tuple[Payload, ...]] = {
    "train": ("values", "gradients"),
    "explore": ("deviations", "units"),
    "evaluate": ("values",),
    "budget": ("values",),
}
"""What a phase may ask for; where nothing comes back it is called values."""


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

    phase: Phase
    plan: Plan
    values: NDArray[Any]
    encoding: Encoding = FLOAT32
    regrow: bool = False
    payload: Payload = "values"
    budget: str = ""

    @classmethod
    def of(
        cls,
        phase: Phase,
        plan: Plan,
        weights: Arrays,
        encoding: Encoding = FLOAT32,
        **rest: Any,
    ) -> "Instructions":
        """Give instructions with the values that a plan keeps of dense weights."""
        return cls(phase, plan, pack(weights, plan), encoding, **rest)

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
        return pack_small(unpack_small(self.values, self.plan), self.reply_plan)


def request_content(
    instructions: Instructions,
    template: RecordDict,
    run: bytes = b"",
    answering: Sequence[str] = (),
) -> RecordDict:
    """Build the content of a request; Flower's NumPyClient adapter can read it, too.

    Parameters
    ----------
    instructions : Instructions
    template : RecordDict
        The inner strategy's content, of which the config is kept.
    run : bytes (default: none)
        Names the run: what a node keeps of another one is dropped.
    answering : sequence of str (default: ())
        Groups with pruned units that an app behind the mod would still hear from.

    Returns
    -------
    RecordDict
    """
    plan = instructions.plan
    arrays_name = next(iter(records_of(template, ArrayRecord)), keys.ARRAYS)
    config_name = next(iter(records_of(template, ConfigRecord)), keys.CONFIG)
    config: dict[str, Any] = dict(
        records_of(template, ConfigRecord).get(config_name, {})
    )
    config |= {
        keys.KEY_VERSION: VERSION,
        keys.KEY_PACKAGE: keys.PACKAGE_VERSION,
        keys.KEY_PHASE: instructions.phase,
        keys.KEY_RUN: run,
        keys.KEY_LAYOUT: encode_layout(plan.layout),
        keys.KEY_PLAN: encode_plan(plan),
        keys.KEY_DTYPE: instructions.encoding.dtype,
    }
    sometimes = {
        keys.KEY_PAYLOAD: (instructions.payload, "values"),
        keys.KEY_REGROW: (instructions.regrow, False),
        keys.KEY_BUDGET: (instructions.budget, ""),
        keys.KEY_ANSWERING: (", ".join(answering), ""),
        keys.KEY_ARRAYS_NAME: (arrays_name, keys.ARRAYS),
        keys.KEY_CONFIG_NAME: (config_name, keys.CONFIG),
    }
    config |= {
        key: given for key, (given, usual) in sometimes.items() if given != usual
    }
    arrays = to_arrayrecord({keys.ARRAY: instructions.encoded})
    names = numpy_names(instructions.phase)
    return RecordDict({names[0]: arrays, names[1]: ConfigRecord(config)})
