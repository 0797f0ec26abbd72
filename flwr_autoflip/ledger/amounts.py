"""Amounts as people write them."""

UNITS = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def ratio(part: float | None, whole: float | None) -> float | None:
    """Divide; None where either is not known, or the whole is 0."""
    return part / whole if part is not None and whole else None


def amount(value: float, unit: str = "") -> str:
    """Write an amount with three digits and its unit.

    Examples
    --------
    >>> amount(1234567, "B"), amount(0, "B"), amount(-2500), amount(12)
    ('1.23 MB', '0 B', '-2.5 k', '12')
    """
    for prefix, factor in UNITS:
        if abs(value) >= 0.9995 * factor:
            value, unit = value / factor, f"{prefix}{unit}"
            break
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    written = f"{value:.{digits}f}"
    if digits:
        written = written.rstrip("0").rstrip(".")
    return f"{written} {unit}".rstrip()


def percent(part: float) -> str:
    """Write a ratio as a percentage, a decimal only below ten.

    Examples
    --------
    >>> percent(0.1149), percent(0.0149), percent(0.0001), percent(1)
    ('11 %', '1.5 %', '<0.1 %', '100 %')
    """
    value = 100 * part
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
