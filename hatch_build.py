"""The long description: README.md, without what a package index cannot show.

There, pictures and links to other files of the repository lead nowhere. Their words
stay; the files are in the source distribution.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = r"\((?!https?:|mailto:)([^)\s]+)\)"
PICTURE = re.compile(r"!\[([^\]]*)\]" + RELATIVE)
LINK = re.compile(r"\[([^\]]+)\]" + RELATIVE)


class CustomMetadataHook(MetadataHookInterface):
    """Give the package's metadata its long description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set ``readme``, which pyproject.toml leaves open."""
        page = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": without_relative_links(page),
        }


def without_relative_links(page: str) -> str:
    """Keep the words of links and pictures that have no address of their own.

    Parameters
    ----------
    page : str
        Markdown.

    Returns
    -------
    str
    """
    page = PICTURE.sub(r"(\1: `\2` of the source distribution)", page)
    return LINK.sub(r"\1", page)
