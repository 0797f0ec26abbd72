"""Every claim of SECURITY.md names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_is_named_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    named = NAMED.findall(text)

    assert len(named) > 20
    assert text.count("tests/") == len(named), "a test is named in another form"
    for path, name in named:
        functions = {
            node.name
            for node in ast.parse((ROOT / path).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{path}::{name}"


def test_everything_that_cannot_be_done_names_a_test() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    lists = re.findall(r"cannot\n\n((?:- .*\n(?:  .*\n)*)+)", text)

    assert len(lists) == 2
    for claims in lists:
        for claim in re.split(r"^- ", claims, flags=re.MULTILINE)[1:]:
            assert NAMED.search(claim), claim
