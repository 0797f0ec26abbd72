"""All targets, by name."""

from . import decoders, files, messages, pages
from .harness import Target

TARGETS: dict[str, Target] = {
    name: found
    for module in (decoders, messages, files, pages)
    for name, found in vars(module).items()
    if isinstance(found, Target)
}
