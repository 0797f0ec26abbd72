"""The documentation's pages, and the blocks of code in them."""

import doctest
import re
from pathlib import Path
from typing import Any, NamedTuple

import flwr_autoflip

ROOT = Path(flwr_autoflip.__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if not {"results", "build"} & set(path.parts)
)


class Block(NamedTuple):
    """A fenced block: what it is written in, its text, the line of its first line."""

    language: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    """List a page's fenced blocks, in order."""
    page = path.read_text()
    found = re.finditer(r"^```([\w{}-]*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [
        Block(match[1], match[2], 2 + page[: match.start()].count("\n"))
        for match in found
    ]


def run_python(blocks: list[Block], names: dict[str, Any], page: str) -> int:
    """Run Python blocks one after the other; those with ``>>>`` must say what they do.

    Returns
    -------
    int
        How many examples were compared with what the page says.
    """
    compared = 0
    for block in blocks:
        if not block.text.startswith(">>>"):
            exec(compile(block.text, f"{page}:{block.line}", "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(
            block.text, names, page, page, block.line - 1
        )
        said: list[str] = []
        result = doctest.DocTestRunner().run(test, out=said.append, clear_globs=False)
        assert not result.failed, "".join(said)
        names.update(test.globs)
        compared += sum(bool(example.want) for example in test.examples)
    return compared
