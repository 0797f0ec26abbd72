"""SVG as text: tags, scales, ticks and numbers as people write them."""

import math
from collections.abc import Callable, Sequence
from html import escape as quote

from ...errors import visible

Scale = Callable[[float], float]
"""A value of the data to a place in the picture."""
SMALLEST_SPAN = 1e-300
"""Of an axis; a quarter of less may be 0."""


def escape(words: str) -> str:
    """Write a text of any origin so that a page shows it and nothing else.

    Examples
    --------
    >>> escape("</script>\\x1b")
    '&lt;/script&gt;?'
    """
    return quote(visible(words))


def share_of(part: float | None, whole: float | None) -> float | None:
    """Give a share; None where either is not known, or nothing is shared."""
    return part / whole if part is not None and whole else None


def tag(name: str, *content: str, **attributes: object) -> str:
    """Write an element.

    Parameters
    ----------
    name : str
    *content : str
        Elements or escaped text; none closes the element at once.
    **attributes : object
        Underscores stand for hyphens, but for a last one (``class_``); numbers are
        rounded to hundredths; None is left out.

    Returns
    -------
    str

    Examples
    --------
    >>> tag("line", x1=0, y_2=1.23456, class_="a<b")
    '<line x1="0" y-2="1.23" class="a&lt;b"/>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{quote(short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if not content:
        return f"<{name}{written}/>"
    return f"<{name}{written}>{''.join(content)}</{name}>"


def short(value: object) -> str:
    """Write a number to hundredths without trailing zeros; anything else as it is."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def text(content: str, x: float, y: float, **attributes: object) -> str:
    """Write a text at a place; its size and colour come from the page."""
    return tag("text", escape(content), x=x, y=y, **attributes)


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Map ``[low, high]`` to ``[start, end]``."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """Map ``[low, high]``, positive, to ``[start, end]`` by logarithms."""
    inner = linear(math.log10(low), math.log10(high), start, end)
    return lambda value: inner(math.log10(max(value, low)))


def ticks(
    low: float, high: float, count: int = 4, *, whole: bool = False
) -> list[float]:
    """Choose round values that cover a range, about ``count`` steps, or whole ones.

    Examples
    --------
    >>> ticks(0, 0.87)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(0, 40)
    [0.0, 10.0, 20.0, 30.0, 40.0]
    """
    span = high - low if high - low > SMALLEST_SPAN else 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = power * min((1, 2, 2.5, 5, 10), key=lambda m: abs(span / count / power - m))
    step = float(max(1, math.ceil(step))) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(float(number * step), 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Choose powers of ten inside a range; with few of them halves and fifths, too."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors: Sequence[int] = (1,) if last - first > 3 else (1, 2, 5)
    found = [f * 10.0**p for p in range(first, last + 1) for f in factors]
    inside = [value for value in found if low <= value <= high]
    return inside if len(inside) <= 5 else inside[:: -(-len(inside) // 5)]


UNITS = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def amount(value: float, unit: str = "") -> str:
    """Write an amount with three digits and its unit.

    Examples
    --------
    >>> amount(1234567, "B"), amount(0, "B"), amount(-2500), amount(12)
    ('1.23 MB', '0 B', '-2.5 k', '12')
    """
    for prefix, factor in UNITS:
        if abs(value) >= 0.9995 * factor:
            return f"{_three(value / factor)} {prefix}{unit}"
    return f"{_three(value)} {unit}".rstrip()


def _three(value: float) -> str:
    """Write three digits, the decimals that say nothing left out."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    written = f"{value:.{digits}f}"
    return written.rstrip("0").rstrip(".") if digits else written


def percent(share: float) -> str:
    """Write a share as a percentage, a decimal only below ten.

    Examples
    --------
    >>> percent(0.1149), percent(0.0149), percent(0.0001), percent(1)
    ('11 %', '1.5 %', '<0.1 %', '100 %')
    """
    value = 100 * share
    if 0 < value < 0.05:
        return "<0.1 %"
    return f"{value:.1f} %" if 0 < abs(value) < 9.95 else f"{value:.0f} %"


def duration(seconds: float) -> str:
    """Write seconds as people say them.

    Examples
    --------
    >>> duration(4.21), duration(75), duration(8000)
    ('4.2 s', '1 min 15 s', '2 h 13 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
