"""The node's side: a NumPyClient whose model is already small."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import nn

from .. import wire
from ..errors import AutoFlipError, AutoFlipWarning, WireError
from ..graph.budget import Budget, parse_budget
from ..graph.codec import VERSION
from ..graph.layout import Arrays
from ..graph.pack import pack_small
from ..graph.shrink import (
    arrays_of,
    build_dense,
    describe,
    hold_mask,
    load_arrays_inplace,
    shrink,
)
from ..ledger.cost import count_parameters
from ..ledger.meter import Spent, measure
from ..wire.probe import append_probe, sum_gradients
from .private import make_report, one_release, privacy_of

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
        Flower's context of this node; its state keeps the plan between rounds.
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
        self.budget = budget_of(context, budget)
        self.privacy = privacy_of(context, privacy)

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Metrics]:
        """Train the model in place.

        Parameters
        ----------
        model : nn.Module
            Small, in training mode, on the CPU.
        config : dict
            What the server app put into ``train_config``. While exploring with
            ``exploration_epochs``, ``config["local-epochs"]`` holds that number.

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

    def fit(
        self, parameters: list[NDArray[Any]], config: Mapping[str, Any]
    ) -> tuple[list[NDArray[Any]], int, dict[str, Any]]:
        """Answer a training (or exploring) request; Flower calls this."""
        request, model = self._read(parameters, config)
        with one_release(request, self.privacy, self.context):
            return self._train(request, model)

    def _train(
        self, request: wire.Request, model: nn.Module
    ) -> tuple[list[NDArray[Any]], int, dict[str, Any]]:
        orders = request.orders
        if orders.phase == "budget":
            request.remember(self.context.state)
            return [np.zeros(0, np.float32)], 1, budget_receipt(request, self.budget)
        received = request.arrays()
        self._load(model, request, received)
        model.train()
        with ExitStack() as stack:
            sums = stack.enter_context(sum_gradients(model)) if orders.probe else {}
            stack.enter_context(hold_mask(model, orders.reply_plan))
            spent = stack.enter_context(measure(model, orders.plan.layout.batch_axis))
            num_examples, metrics = self.train(model, request.config)
        trained = arrays_of(model)
        receipt = _receipt(request, model, spent.of(int(num_examples)))
        if orders.phase == "explore":
            values, sealed = make_report(
                request, received, trained, self.privacy, self.context.state
            )
            receipt |= sealed
        else:
            if num_examples:
                warn_if_unmoved(received, trained, request)
            flat = pack_small(trained, orders.reply_plan)
            values = wire.encode_trained(orders, flat, self.context.state)
            if orders.probe:
                values = append_probe(values, sums, orders.reply_plan)
        return [values], int(num_examples), {**_numbers(metrics), **receipt}

    def evaluate(
        self, parameters: list[NDArray[Any]], config: Mapping[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        """Answer an evaluation request; Flower calls this."""
        request, model = self._read(parameters, config)
        self._load(model, request, request.arrays())
        model.eval()
        axis = request.orders.plan.layout.batch_axis
        with torch.no_grad(), measure(model, axis) as spent:
            loss, num_examples, metrics = self.test(model, request.config)
        receipt = _receipt(request, model, spent.of(int(num_examples)))
        return float(loss), int(num_examples), {**_numbers(metrics), **receipt}

    def _read(
        self, parameters: list[NDArray[Any]], config: Mapping[str, Any]
    ) -> tuple[wire.Request, nn.Module]:
        """Read what the server asks of this node's own model, and cut that to it."""
        wire.check_single(len(parameters))
        dense = build_dense(self.model_fn)
        request = wire.read_request(
            parameters[0], config, self.context.state, describe(dense)
        )
        check_budget(request, self.budget)
        return request, shrink(dense, request.orders.plan)

    def _load(
        self, model: nn.Module, request: wire.Request, arrays: dict[str, NDArray[Any]]
    ) -> None:
        load_arrays_inplace(model, arrays)
        request.remember(self.context.state)  # it fits this node's model


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
            raise AutoFlipError(wire.SECURE_AGGREGATION)
    app = ClientApp(**options)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        values, config = _contents(message)
        reply, count, metrics = client_fn(context).fit([values], config)
        content = wire.train_reply(reply[0], count, metrics, message.content)
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        values, config = _contents(message)
        loss, count, metrics = client_fn(context).evaluate([values], config)
        return Message(wire.evaluate_reply(loss, count, metrics), reply_to=message)

    return app


def _contents(message: Message) -> tuple[NDArray[Any], dict[str, Any]]:
    content = message.content
    arrays = list(wire.records_of(content, ArrayRecord).values())
    configs = list(wire.records_of(content, ConfigRecord).values())
    if len(arrays) != 1 or len(configs) != 1:
        raise WireError(
            "expected one ArrayRecord and one ConfigRecord, got "
            f"{len(arrays)} and {len(configs)}."
        )
    return wire.single_array(arrays[0]), dict(configs[0])


def warn_if_unmoved(sent: Arrays, trained: Arrays, request: wire.Request) -> None:
    """Warn if training left every weight as it came: often a copy was trained.

    Exploring needs no warning: a report of nothing is refused.
    """
    weights = [t.name for t in request.orders.plan.layout.tensors if t.trainable]
    if all(np.array_equal(sent[name], trained[name]) for name in weights):
        warnings.warn(
            "no weight moved in training: is it a copy that is trained, or the "
            "learning rate 0? Train the model that was given, in place, and return it.",
            AutoFlipWarning,
            stacklevel=2,
        )


# --- What a node can carry ---


def budget_of(context: Context, given: str | None = None) -> Budget | None:
    """Read a node's budget: the one given, or its ``--node-config``'s."""
    value = context.node_config.get(wire.KEY_BUDGET) if given is None else given
    return parse_budget(value, whose=f"node {context.node_id}")


def budget_receipt(request: wire.Request, budget: Budget | None) -> dict[str, Any]:
    """Say what the node can carry."""
    receipt = receipt_of(request, parameters=0, seconds=0.0)
    return receipt | {wire.KEY_EXAMPLES: 0, wire.KEY_BUDGET: str(budget or "")}


def check_budget(request: wire.Request, budget: Budget | None) -> None:
    """Refuse work that was not cut to this node's budget.

    Raises
    ------
    WireError
        If the server does not ask for budgets, or knows another one.
    """
    sent, own = request.orders.budget, str(budget or "")
    if request.orders.phase != "budget" and sent != own:
        raise WireError(
            f"this node's budget is {own or 'none'!r}, but the server sent what fits "
            f"{sent or 'none'!r}; set budgets=True in the server's AutoFlip. If it is "
            "set, the budget changed and is asked for again."
        )


# --- What it cost ---


def receipt_of(
    request: wire.Request, parameters: int, seconds: float
) -> dict[str, Any]:
    """Say which plan was trained, how large the model was and how long it took."""
    return {
        wire.KEY_VERSION: VERSION,
        wire.KEY_DIGEST: request.digest,
        wire.KEY_PARAMETERS: parameters,
        wire.KEY_SECONDS: seconds,
    }


def _receipt(request: wire.Request, model: nn.Module, spent: Spent) -> dict[str, Any]:
    """Say what was counted; what is unknown is left out, and why is said."""
    counted = {
        wire.KEY_EXAMPLES: spent.examples,
        wire.KEY_EVAL_EXAMPLES: spent.eval_examples,
        wire.KEY_MACS: spent.macs,
        wire.KEY_EVAL_MACS: spent.eval_macs,
        wire.KEY_UNCOUNTED: spent.uncounted or None,
    }
    receipt = receipt_of(request, count_parameters(model), spent.seconds)
    return receipt | {key: x for key, x in counted.items() if x is not None}


def _numbers(metrics: Metrics) -> dict[str, float]:
    """Turn an app's metrics into plain numbers, which is all that Flower averages."""
    plain: dict[str, float] = {}
    for name, value in metrics.items():
        number = np.asarray(value)
        if number.size != 1 or number.dtype.kind not in "biuf":
            raise AutoFlipError(
                f"metric {name!r} must be one number, got {type(value).__name__}."
            )
        if name.startswith(wire.PREFIX):
            raise AutoFlipError(f"metric {name!r}: names in {wire.PREFIX}* are ours.")
        item = number.item()
        plain[name] = int(item) if isinstance(item, bool) else item
    return plain
