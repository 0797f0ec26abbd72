"""The node's side: a client whose model is already small."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import nn

from .. import wire
from ..errors import AutoFlipError
from ..graph import shrink
from ..graph.pack import pack_small
from ..ledger.cost import count_parameters
from ..ledger.meter import Spent, measure
from . import answer

Metrics = Mapping[str, Any]


class AutoFlipClient(NumPyClient):
    """A client that trains what the server's plan leaves of the model.

    Subclasses write :meth:`train` and :meth:`test`; both get a model that is already
    small. Works through :func:`client_app` (message API) and, unchanged, through
    Flower's plain ``ClientApp(client_fn=...)``.

    Parameters
    ----------
    model_fn : callable
        Gives the dense model, such as the model's class.
    context : Context
        Flower's context of this node.
    budget : str, optional
        What this node can carry, such as ``"macs:0.25"``; left out, what
        ``autoflip-budget`` in its ``--node-config`` says. See
        :func:`flwr_autoflip.graph.budget.parse_budget`.
    privacy : str, optional
        Noise on what this node reports when it explores, such as
        ``"epsilon:8,delta:1e-5"``; left out, what ``autoflip-privacy`` in its
        ``--node-config`` says. See :mod:`flwr_autoflip.wire.privacy`.

    Raises
    ------
    AutoFlipError
        If budget or privacy cannot be read.

    Examples
    --------
    ::

        class Client(AutoFlipClient):
            def train(self, model, config):
                ...                                # any loop, any optimizer
                return len(dataset), {"loss": loss}

        app = client_app(lambda context: Client(Net, context))
    """

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        context: Context,
        budget: str | None = None,
        privacy: str | None = None,
    ) -> None:
        self.model_fn = model_fn
        self.context = context
        self.budget = answer.budget_of(context, budget)
        self.privacy = answer.privacy_of(context, privacy)

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Metrics]:
        """Train the model in place.

        Parameters
        ----------
        model : nn.Module
            Small, in training mode, on the CPU.
        config : dict
            What the server app put into ``train_config``. Where the method says how
            many epochs, ``config["local-epochs"]`` holds that number.

        Returns
        -------
        num_examples : int
            Weight of this node in the average.
        metrics : mapping of str to number
        """
        raise NotImplementedError("write train(self, model, config) in your client.")

    def test(
        self, model: nn.Module, config: dict[str, Any]
    ) -> tuple[float, int, Metrics]:
        """Evaluate the model on this node's data.

        Parameters
        ----------
        model : nn.Module
            Small, in evaluation mode, on the CPU.
        config : dict
            What the server app put into ``evaluate_config``.

        Returns
        -------
        loss : float
        num_examples : int
        metrics : mapping of str to number
        """
        raise NotImplementedError("write test(self, model, config) in your client.")

    def answer_train(self, content: RecordDict) -> RecordDict:
        """Answer a request to train, to explore, or to say what this node carries."""
        request, model = self._read(content)
        instructions = request.instructions
        if instructions.phase == "budget":
            return answer.budget_reply(request, self.budget)
        plan, start = instructions.reply_plan, request.arrays()
        sums: dict[str, torch.Tensor] = {}
        with (
            answer.one_release(request, self.privacy, self.context),
            ExitStack() as stack,
        ):
            shrink.load_arrays_inplace(model.train(), start)
            if instructions.payload == "gradients":
                sums = stack.enter_context(sum_gradients(model))
            stack.enter_context(shrink.hold_mask(model, plan))
            spent = stack.enter_context(measure(model, plan.layout.batch_axis))
            count, metrics = self.train(model, request.config)
            stack.close()
            trained, state = shrink.arrays_of(model), self.context.state
            values, metadata = answer.answer(
                request, start, trained, pack_small, self.privacy, state
            )
        if count:
            answer.warn_if_unmoved(request, start, trained)
        if instructions.payload == "gradients":
            found = {name: total.cpu().numpy() for name, total in sums.items()}
            values = wire.append_gradients(values, found, plan)
        metadata |= _metadata(request, model, spent.of(int(count)))
        numbers = {wire.keys.NUM_EXAMPLES: int(count), **_numbers(metrics)}
        return wire.reply_content(numbers, metadata, values)

    def answer_evaluate(self, content: RecordDict) -> RecordDict:
        """Answer a request to evaluate."""
        request, model = self._read(content)
        shrink.load_arrays_inplace(model.eval(), request.arrays())
        axis = request.instructions.plan.layout.batch_axis
        with torch.no_grad(), measure(model, axis) as spent:
            loss, count, metrics = self.test(model, request.config)
        metadata = _metadata(request, model, spent.of(int(count)))
        numbers = {wire.keys.NUM_EXAMPLES: int(count), "loss": float(loss)}
        return wire.reply_content({**numbers, **_numbers(metrics)}, metadata)

    def _read(self, content: RecordDict) -> tuple[wire.Request, nn.Module]:
        """Read what the server asks of this node's own model, and cut that to it."""
        dense = shrink.build_dense(self.model_fn)
        request = wire.read_request(content, shrink.describe(dense))
        answer.check_budget(request, self.budget)
        return request, shrink.shrink(dense, request.instructions.plan)

    # --- Flower's NumPy API ---

    def fit(
        self, parameters: list[NDArray[Any]], config: Mapping[str, Any]
    ) -> tuple[list[NDArray[Any]], int, dict[str, Any]]:
        """Answer as :meth:`answer_train`, for a plain ``ClientApp(client_fn)``."""
        reply = self.answer_train(_content(parameters, config))
        values = wire.from_arrayrecord(reply.array_records[wire.keys.ARRAYS])
        count, said = _numpy_reply(reply)
        return list(values.values()), count, said

    def evaluate(
        self, parameters: list[NDArray[Any]], config: Mapping[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        """Answer as :meth:`answer_evaluate`, for a plain ``ClientApp(client_fn)``."""
        reply = self.answer_evaluate(_content(parameters, config))
        count, said = _numpy_reply(reply)
        return said.pop("loss"), count, said


def _numpy_reply(reply: RecordDict) -> tuple[int, dict[str, Any]]:
    """Give the number of examples, and metrics beside metadata."""
    said = reply.metric_records[wire.keys.METRICS], reply[wire.keys.METADATA]
    whole: dict[str, Any] = {**said[0], **said[1]}
    return int(whole.pop(wire.keys.NUM_EXAMPLES)), whole


def _content(parameters: list[NDArray[Any]], config: Mapping[str, Any]) -> RecordDict:
    arrays = {str(place): array for place, array in enumerate(parameters)}
    records = wire.to_arrayrecord(arrays), ConfigRecord(dict(config))
    return RecordDict(dict(zip(wire.keys.numpy_names("train"), records, strict=True)))


def client_app(
    client_fn: Callable[[Context], AutoFlipClient], **options: Any
) -> ClientApp:
    """Serve an :class:`AutoFlipClient` over Flower's message API.

    Parameters
    ----------
    client_fn : callable
        Context -> client.
    **options
        For Flower's ``ClientApp``, such as ``mods``.

    Returns
    -------
    ClientApp

    Raises
    ------
    AutoFlipError
        If a mod is one of secure aggregation.
    """
    for mod in options.get("mods") or ():
        if getattr(mod, "__name__", "") in ("secagg_mod", "secaggplus_mod"):
            raise AutoFlipError(wire.hints.SECURE_AGGREGATION)
    app = ClientApp(**options)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = client_fn(context).answer_train(message.content)
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        content = client_fn(context).answer_evaluate(message.content)
        return Message(content, reply_to=message)

    return app


@contextmanager
def sum_gradients(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Add up each parameter's gradients while any loop trains the model.

    Hooks see them before a mask or a clipping does. Gives parameter name to its sum;
    names whose gradient never came are absent.
    """
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, grad: torch.Tensor) -> None:
        if name in sums:
            sums[name] += grad.detach()  # in place: runs in every step of training
        else:
            sums[name] = grad.detach().clone()

    handles = [
        parameter.register_hook(partial(add, name))  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _metadata(request: wire.Request, model: nn.Module, spent: Spent) -> dict[str, Any]:
    """Say what was counted; what is unknown is left out, and why is said."""
    counted = {
        wire.keys.EXAMPLES: spent.examples,
        wire.keys.EVAL_EXAMPLES: spent.eval_examples,
        wire.keys.MACS: spent.macs,
        wire.keys.EVAL_MACS: spent.eval_macs,
        wire.keys.UNCOUNTED: spent.uncounted or None,
    }
    metadata = answer.metadata_of(request, count_parameters(model), spent.seconds)
    return metadata | {key: x for key, x in counted.items() if x is not None}


def _numbers(metrics: Metrics) -> dict[str, float]:
    """Turn an app's metrics into plain numbers, which is all that Flower averages."""
    plain: dict[str, float] = {}
    for name, value in metrics.items():
        number = np.asarray(value)
        if number.size != 1 or number.dtype.kind not in "biuf":
            raise AutoFlipError(
                f"metric {name!r} must be one number, got {type(value).__name__}."
            )
        if name.startswith(wire.keys.PREFIX):
            raise AutoFlipError(
                f"metric {name!r}: names in {wire.keys.PREFIX}* are ours."
            )
        item = number.item()
        plain[name] = int(item) if isinstance(item, bool) else item
    return plain
