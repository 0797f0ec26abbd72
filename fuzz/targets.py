"""All targets, by name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from . import decoders, files, messages, pages


@dataclass(frozen=True)
class Target:
    """A function of bytes with an oracle in it.

    Parameters
    ----------
    run : callable
        Bytes to whether they were accepted; raises on a finding.
    seeds : callable
        Gives bytes to begin with, made from real messages and files.
    longest : int (default: 4096)
        Bytes of an input.
    """

    run: Callable[[bytes], bool]
    seeds: Callable[[], Iterable[bytes]]
    longest: int = 4096


TARGETS: dict[str, Target] = {
    "layout": Target(decoders.fuzz_layout, decoders.seed_layout),
    "plan": Target(decoders.fuzz_plan, decoders.seed_plan, 64),
    "values": Target(decoders.fuzz_values, decoders.seed_values, 1024),
    "array": Target(decoders.fuzz_array, decoders.seed_array, 1024),
    "report": Target(decoders.fuzz_report, decoders.seed_report, 1024),
    "gradients": Target(decoders.fuzz_gradients, decoders.seed_gradients, 2048),
    "request": Target(messages.fuzz_request, messages.seeds, 64),
    "reply": Target(messages.fuzz_reply, messages.seeds, 64),
    "report_file": Target(files.fuzz_report_file, files.seed_report_file),
    "checkpoint": Target(files.fuzz_checkpoint, files.seed_checkpoint),
    "safetensors": Target(files.fuzz_safetensors, files.seed_safetensors),
    "model_file": Target(files.fuzz_model_file, files.seed_model_file, 8192),
    "model_metadata": Target(files.fuzz_model_metadata, files.seed_model_metadata, 512),
    "ledger": Target(files.fuzz_ledger, files.seed_ledger, 512),
    "ledger_rows": Target(pages.fuzz_rows, pages.seeds, 8192),
    "page": Target(pages.fuzz_page, pages.seeds, 8192),
    "scalars": Target(pages.fuzz_scalars, pages.seeds, 8192),
}
