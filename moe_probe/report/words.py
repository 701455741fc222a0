"""Numbers and lists as they stand in a sentence. It knows no data."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

NO_BREAK = "\u00a0"


def percent(share: float, digits: int = 1) -> str:
    """Return a share in per cent.

    Example:
        >>> percent(0.125).replace(NO_BREAK, "_"), percent(0.5, 0).replace(NO_BREAK, "_")
        ('12.5_%', '50_%')
    """
    return f"{share * 100:.{digits}f}{NO_BREAK}%"


def between(low: float | None, high: float | None, form: str = ".2f", scale: float = 1) -> str:
    """Return an interval in brackets, with a blank before it; nothing where it is not known.

    Example:
        >>> between(0.1, 0.25), between(None, 1)
        (' (0.10–0.25)', '')
    """
    if low is None or high is None:
        return ""
    ends = [format(end * scale, form).replace("-", "−") for end in (low, high)]
    return f" ({ends[0]}{' to ' if '−' in ''.join(ends) else '–'}{ends[1]})"


def numbered(count: int, noun: str) -> str:
    """Return a count with its noun.

    Example:
        >>> numbered(1, "expert"), numbered(1200, "expert")
        ('1 expert', '1,200 experts')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return names as a list in a sentence, the first few if there are many.

    Example:
        >>> listed(["a"]), listed(["a", "b", "c"]), listed(list("abcd"), 2)
        ('a', 'a, b and c', 'a, b and 2 more')
    """
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most:,} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def range_of(counts: pl.Series) -> str:
    """Return the least and the greatest of some counts, or the one number that they all are; 0 of none.

    Example:
        >>> range_of(pl.Series([1200, 3])), range_of(pl.Series([5, 5])), range_of(pl.Series([], dtype=pl.Int64))
        ('3 to 1,200', '5', '0')
    """
    if counts.is_empty():
        return "0"
    low, high = int(counts.to_numpy().min()), int(counts.to_numpy().max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
