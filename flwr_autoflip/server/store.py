"""Explorers' reports: one file a node, and what a plan of all of them needs."""

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from logging import getLogger
from pathlib import Path

from ..errors import DamagedFileError, visible
from ..graph.storage import make_private
from ..methods.statistics import Report, Running, RunningStatistics, SummedReports
from .report_file import StoredReport, open_report, write_report

LOGGER = getLogger("flwr")


class _Home:
    """A temporary folder's life: as long as the store or any of its reports."""


class ReportStore(Mapping[int, Report]):
    """Node id to report, on disk.

    A node whose file cannot be written, or is damaged, is logged and counts as one
    that never explored.

    Parameters
    ----------
    layout : bytes
        The layout's digest; every file holds it.
    folder : Path, optional
        Made when first written to. Left out, a temporary one that goes with the store
        and its reports.
    running : Running, optional
        Keep such statistics as reports come, so that a plan of all explorers reads no
        file; left out, it takes one pass over the files.

    Attributes
    ----------
    fault : str
        Why a node's report was lost last; empty if none was.
    """

    def __init__(
        self,
        layout: bytes,
        folder: Path | None = None,
        running: Running | None = None,
    ) -> None:
        self.layout, self.folder, self.running = layout, folder, running
        self._files: dict[int, StoredReport] = {}
        self._statistics: RunningStatistics | None = None
        self._home: _Home | None = None
        self.fault = ""

    def add(self, node: int, report: Report) -> bool:
        """Write a node's report.

        Parameters
        ----------
        node : int
        report : Report
            Float32, finite. It is not kept.

        Returns
        -------
        bool
            Whether it could be written.
        """
        path = self.folder
        try:
            path = self._path(node)
            make_private(path.parent)
            stored = write_report(path, report, self.layout, node)
        except OSError as error:
            where = path or tempfile.gettempdir()
            self._lose(node, f"{where} cannot be written: {error}")
            return False
        stored.home = self._home
        known = node in self._files
        self._files[node] = stored
        if known:
            self._statistics = None  # with the old one in it
        elif self.running and (self._statistics or len(self._files) == 1):
            self._statistics = self._statistics or self._new_statistics(self.running)
            self._statistics.add(stored)
        return True

    def _new_statistics(self, kept: Running) -> RunningStatistics:
        return RunningStatistics(kept.extremes, kept.scaled)

    def everyone(self) -> Sequence[Report]:
        """Give all explorers' reports; with statistics where those are kept."""
        if not self.running or not self._files:
            return self.of(self._files)
        if self._statistics is None:  # after a restart
            reports = self.of(self._files)
            self._statistics = self._new_statistics(self.running)
            for report in reports:
                self._statistics.add(report)
        return SummedReports(list(self._files.values()), self._statistics)

    def of(self, nodes: Iterable[int]) -> list[Report]:
        """Give these nodes' reports, without those whose file is not whole."""
        wanted = [node for node in nodes if node in self._files]
        return [self._files[node] for node in wanted if self._is_whole(node)]

    def release(self) -> None:
        """Let statistics go: no more plans of all explorers are to be expected."""
        self.running = self._statistics = None

    def _is_whole(self, node: int, values: bool = True) -> bool:
        try:
            self._files[node].check(values)
        except DamagedFileError as error:
            del self._files[node]
            self._lose(node, str(error))
            return False
        return True

    def _lose(self, node: int, reason: str) -> None:
        self.fault = reason
        LOGGER.warning("\t> node %s counts as unexplored: %s", node, visible(reason))

    def _path(self, node: int) -> Path:
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="flwr-autoflip-"))  # ours alone
            self._home = _Home()
            weakref.finalize(self._home, shutil.rmtree, self.folder, ignore_errors=True)
        return self.folder / f"node-{node}.guidance"

    # --- As a mapping ---

    def __contains__(self, node: object) -> bool:
        """Tell whether a node explored and its file is there, with its length."""
        return node in self._files and self._is_whole(node, values=False)

    def __getitem__(self, node: int) -> Report:
        return self._files[node]

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._files))

    def __len__(self) -> int:
        return len(self._files)

    # --- Checkpoints ---

    def state(self) -> dict[int, int]:
        """Give what :meth:`restore` needs beside the files: node to checksum."""
        return {node: stored.checksum for node, stored in self._files.items()}

    def restore(self, state: Mapping[int, int]) -> None:
        """Take files of the folder back, in this order; log those not whole."""
        self._files, self._statistics = {}, None
        for node, checksum in state.items():
            try:
                stored = open_report(self._path(node), self.layout, node, checksum)
            except DamagedFileError as error:
                self._lose(node, str(error))
            else:
                self._files[node] = stored
