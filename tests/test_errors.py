"""What nodes and files say, on a terminal."""

import pytest

from flwr_autoflip.errors import LONGEST, visible

HOSTILE = [
    "\x1b[2J\x1b[31mred",  # clears the terminal
    "top1\n[ERROR] forged",
    "a\r\rb",
    "\x9b31m",  # an escape sequence of one character
    "abc\u202egnp.exe",  # writes from right to left
    "zero\u200bwidth",
    "\ud800",  # half a character
    "\x00\x07\x08",
    "\u2028\u2029",
    "x" * 10**6,
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_anything_becomes_a_short_line_of_what_can_be_seen(text: str) -> None:
    shown = visible(text)

    assert shown.isprintable()
    assert len(shown) <= LONGEST
    shown.encode()


def test_words_of_any_language_stay() -> None:
    text = "précision ±1 % für «größer» 精度 [/b] <i> $x$"

    assert visible(text) == text
