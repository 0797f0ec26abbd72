"""What a method is: it says what a round asks of its nodes, and learns from it.

The server carries out each :class:`Order` and hands back a :class:`Round`; it knows no
method by name. Both, and the method's state, are plain frozen values, so that a run
can stop between any two of them and go on.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, get_args

from numpy.typing import NDArray

from ..errors import AutoFlipError
from ..graph.layout import Arrays, Layout
from ..graph.plan import Plan
from .guidance import Report, l1_scores

Payload = Literal["values", "gradients", "deviations", "units"]
"""What nodes send back. ``"values"``: what they trained, the ordinary reply.
``"gradients"``: that, and the size of each kept weight's summed gradients, pruned
single weights included. ``"deviations"``: only how far each weight moved (Eq. 7).
``"units"``: only that, summed by unit; a node may add noise."""

ValueDtype = Literal["float32", "float16", "int8"]
Scores = Mapping[str, NDArray[Any]]
"""Group name to one score a unit, ``(group.size,)``; the lowest are pruned first."""


@dataclass(frozen=True)
class Order:
    """What one round asks of its nodes.

    Parameters
    ----------
    plan : Plan
        What travels and trains.
    who : {"round", "all"}, int or tuple of int (default: "round")
        The nodes that the inner strategy samples, every node that is connected, so
        many of the sampled ones, or the nodes of these ids.
    payload : {"values", "gradients", "deviations", "units"} (default: "values")
        What comes back. The last two leave the global model as it is: the round goes
        on, once the method has learned from them, with its next order.
    weights : mapping of str to ndarray, optional
        The dense model that the round starts from, in place of the global one.
    epochs : int, optional
        Sent to nodes as ``config["local-epochs"]``; None leaves the app's own.
    dtype : {"float32", "float16", "int8"}, optional
        Of values in this round; None leaves the run's own.
    regrow : bool (default: False)
        Pruned single weights may come back in local training.
    untrained : {"keep", "zero"} (default: "keep")
        What becomes of global weights that no node trained.
    whole : bool (default: False)
        Only nodes that carry the whole plan take part, others in weak ones' place
        unless ``who`` names nodes; no node gets a part of it. Where no node can, the
        method learns from no results, and the round goes on with its next order.

    Raises
    ------
    AutoFlipError
        If ``who`` or one of the words is none of these.
    """

    plan: Plan
    who: Literal["round", "all"] | int | tuple[int, ...] = "round"
    payload: Payload = "values"
    weights: Arrays | None = None
    epochs: int | None = None
    dtype: ValueDtype | None = None
    regrow: bool = False
    untrained: Literal["keep", "zero"] = "keep"
    whole: bool = False

    def __post_init__(self) -> None:
        who = self.who
        if not (who in ("round", "all") if isinstance(who, str) else who):
            raise AutoFlipError(
                f"an order's who must be 'round', 'all', a number of nodes above 0 or "
                f"a tuple of their ids, got {who!r}."
            )
        for name, allowed in {
            "payload": get_args(Payload),
            "untrained": ("keep", "zero"),
            "dtype": (None, *get_args(ValueDtype)),
        }.items():
            if getattr(self, name) not in allowed:
                raise AutoFlipError(
                    f"an order's {name} must be one of {allowed}, got "
                    f"{getattr(self, name)!r}."
                )


@dataclass(frozen=True)
class Result:
    """What one node's valid reply showed.

    Parameters
    ----------
    node : int
        Flower's id.
    num_examples : float
        The reply's weight in averages.
    report : mapping of str to ndarray
        Float32, at least 0, by tensor name in dense shapes, trainable tensors only:
        with ``"gradients"`` squares of summed gradients, otherwise deviations. By
        group name, ``(group.size,)``, with ``"units"``. Each array is made when it is
        looked up, so that many nodes take no more memory than their replies.
        With ``"deviations"`` it lies on disk and may be kept in a method's state.
    """

    node: int
    num_examples: float
    report: Report


@dataclass(frozen=True)
class Round:
    """An order that was carried out.

    Parameters
    ----------
    number : int
        From 1 on.
    order : Order
    results : sequence of Result
        In the order of the requests. Empty only where an order that leaves the global
        model as it is got no valid reply, or no node carries the whole plan of one
        that asks for it; a lost round is not learned from.
    weights : mapping of str to ndarray
        The dense global model after it.
    """

    number: int
    order: Order
    results: Sequence[Result]
    weights: Arrays


@dataclass(frozen=True)
class State:
    """What a method knows; inherit from it for more.

    Fields hold numbers, texts, arrays, plans, layouts, kept reports, and lists, tuples
    and dicts of them: what a checkpoint can hold.

    Parameters
    ----------
    plan : Plan
        What a device would run now.
    scores : mapping of str to ndarray (default: empty)
        Of units, that the plan rests on.
    """

    plan: Plan
    scores: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class Explored(State):
    """State of a method that explores once: whether it has."""

    explored: bool = False


S = TypeVar("S", bound=State)


class Method(ABC, Generic[S]):
    """A pruning method; a frozen dataclass whose fields are its options.

    Its functions are pure: the same arguments give the same answers, random draws
    included. Neither they nor the server write into arrays that the other gave.

    Attributes
    ----------
    evaluates_dense : bool
        Whether ``evaluate_fn`` is called a second time a round, with the dense model:
        for methods whose pruned weights live on.
    round_to : int
        What weak nodes get of a plan keeps a multiple of this many units a group, too.
    """

    evaluates_dense: bool = False
    round_to: int = 1

    @abstractmethod
    def begin(self, layout: Layout, weights: Arrays) -> tuple[S, Arrays]:
        """Begin a run from the dense initial model.

        Returns
        -------
        state : State
        weights : mapping of str to ndarray
            The dense model that the rounds start from: the same object if it stays.
        """

    def order(self, state: S, server_round: int, nodes: Sequence[int]) -> Order:
        """Say what a round asks: by default its nodes train the state's plan.

        Called again within a round whose order left the global model as it was.

        Parameters
        ----------
        state : State
        server_round : int
            From 1 on.
        nodes : sequence of int
            Those that the inner strategy sampled.
        """
        return Order(state.plan)

    def learn(self, state: S, done: Round) -> tuple[S, Arrays]:
        """Take in what a round showed: by default nothing.

        Returns
        -------
        state : State
        weights : mapping of str to ndarray
            The dense model that the run goes on with: ``done.weights`` if it stays.
        """
        return state, done.weights

    def importance(self, state: S, weights: Arrays) -> Scores:
        """Score units, for nodes that carry less than the plan, and for a look.

        By default the state's scores; without any, the mean absolute value of a unit's
        own parameters in ``weights``, the dense global model.
        """
        return state.scores or l1_scores(state.plan.layout, weights)
