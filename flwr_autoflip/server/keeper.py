"""All that a run remembers: into a checkpoint, and back into its places."""

from dataclasses import asdict, dataclass, field
from logging import INFO, getLogger
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from ..errors import AutoFlipError
from ..graph.codec import layout_digest
from ..graph.layout import Arrays
from ..ledger.ledger import Ledger, Mark
from .checkpoint import CheckpointFolder
from .explorer import Explorer
from .noise import draws_noise, seed_anew
from .planner import Planner
from .snapshot import (
    attributes_of,
    describe_policy,
    differences,
    restore_inplace,
    set_generators,
    settings_of,
    take_generators,
    warn_unsaved,
)

LOGGER = getLogger("flwr")
_NEW_NOISE = (
    "noise may be drawn in this run, so generators are seeded anew; figures differ "
    "from those of a run that was never stopped"
)

BEGUN = -1
"""Last round of a run whose plan is not made yet; 0 once it is."""

Metrics = dict[int, MetricRecord]


@dataclass
class Progress:
    """How far a run is.

    Parameters
    ----------
    arrays : ArrayRecord
        The global model; what the inner strategy holds may be the same object.
    train_config, evaluate_config : ConfigRecord
        The app's; strategies change them from round to round.
    last_round : int (default: -1)
        The last that is done.
    trained_round : int (default: 0)
        The last whose training is done; perhaps its evaluation is not.
    train, evaluate, server : dict of int to MetricRecord
        Figures of each round, as in Flower's ``Result``.
    """

    arrays: ArrayRecord
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    last_round: int = BEGUN
    trained_round: int = 0
    train: Metrics = field(default_factory=dict)
    evaluate: Metrics = field(default_factory=dict)
    server: Metrics = field(default_factory=dict)


@dataclass
class Keeper:
    """Write all that a run remembers into a folder, and put it back.

    Parameters
    ----------
    folder : CheckpointFolder
    explorer : Explorer
        Knows the inner strategy, which must not have run yet, and the ledger.
    planner : Planner

    Attributes
    ----------
    noisy : bool
        Whether the inner strategy, or a node of this process, may draw noise. A
        checkpoint then holds nothing that foretells it.
    """

    folder: CheckpointFolder
    explorer: Explorer
    planner: Planner
    noisy: bool = field(init=False)
    settings: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        explorer = self.explorer
        self.noisy = draws_noise(self.inner)
        self.settings = {
            "model": layout_digest(explorer.layout).hex(),
            **{name: repr(value) for name, value in explorer.options.items()},
            "policy": describe_policy(self.planner.policy),
            **settings_of(self.inner, self.noisy),
        }

    @property
    def inner(self) -> Strategy:
        """The inner strategy."""
        return self.explorer.inner

    @property
    def ledger(self) -> Ledger:
        """The run's ledger."""
        return self.explorer.exchange.ledger

    def save(self, progress: Progress) -> None:
        """Write a checkpoint."""
        keep, initial = self.folder.keep, self.planner.initial
        state = {
            "settings": dict(self.settings),
            "progress": dict(vars(progress)),
            "inner": attributes_of(self.inner, self.noisy),
            "planner": self.planner.state(),
            "initial": keep(initial) if initial else None,
            "reports": self.explorer.reports.state(),
            "generators": None if self.noisy else take_generators(),
            "ledger": asdict(self.ledger.mark()),
        }
        number = progress.last_round - BEGUN + progress.trained_round
        self.folder.save(number, state)

    def open(self, begun: Progress, num_rounds: int) -> Progress:
        """Go on where the folder's run stopped, or begin one.

        Parameters
        ----------
        begun : Progress
            Of a run that begins.
        num_rounds : int

        Returns
        -------
        Progress
            Everything else is put into its place: the inner strategy's attributes,
            reports, plans, generators and the ledger. What nodes hold is forgotten:
            nobody knows what reached them last. Where noise may be drawn, no generator
            was saved: the operating system seeds new ones.

        Raises
        ------
        AutoFlipError
            If it is another run's folder, none of its checkpoints is whole, or it has
            more rounds than are asked for. Nothing is changed then.
        """
        self.settings["train_config"] = repr(dict(begun.train_config))
        self.settings["evaluate_config"] = repr(dict(begun.evaluate_config))
        found = self.folder.load(self._complete)
        warn_unsaved(self.inner, self.noisy)
        if found is None:
            self.ledger.clear()
            self.save(begun)
            return begun
        state, initial = found
        progress = Progress(**state["progress"])
        if progress.trained_round > num_rounds:
            raise AutoFlipError(
                f"{self.folder.path} is in round {progress.trained_round} already, "
                f"num_rounds is {num_rounds}; ask for as many or more, or use another "
                "folder."
            )
        restore_inplace(self.inner, state["inner"])
        self.explorer.reports.restore(state["reports"])
        self.planner.restore(state["planner"])
        self.planner.initial = initial
        self.ledger.resume(Mark(**state["ledger"]))
        if self.noisy:
            LOGGER.log(INFO, "%s: %s", self.folder.path, _NEW_NOISE)
            seed_anew(self.inner)
        else:
            set_generators(state["generators"])
        return progress

    def _complete(self, state: dict[str, Any]) -> tuple[dict[str, Any], Arrays]:
        """Check that a state is this run's and that what it refers to is whole."""
        others = list(differences(state["settings"], self.settings))
        if others:
            shown = "; ".join(
                f"{name} was {was}, is {now}" for name, was, now in others
            )
            raise AutoFlipError(
                f"{self.folder.path} holds another run: {shown}. Give this run a "
                "checkpoint_dir of its own."
            )
        initial = self.folder.kept(state["initial"]) if state["initial"] else {}
        self.ledger.check(Mark(**state["ledger"]))
        return state, initial
