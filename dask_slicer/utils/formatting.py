"""Text for messages: plurals, sizes, durations, suggestions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# Messages may quote text of a damaged file, of any length.
_LONGEST_LINE = 2000


def plural(n: int, noun: str) -> str:
    """Return a number with its noun, such as 1 case, 2 cases."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes with its unit, such as 153.4 MB."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        n_bytes /= 1000
        if n_bytes < 1000 or unit == "TB":
            break
    return f"{n_bytes:.1f} {unit}"


def format_time(seconds: float) -> str:
    """Return a time span with its units, such as 2.5 s or 2 h 3 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def as_utf8(text: str) -> str:
    """Return a text that UTF-8 can hold: file names may have any encoding, or none."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def escape_line(text: str) -> str:
    """Return a text on one line, its control characters escaped."""
    line = " ".join(text.split())
    if len(line) > _LONGEST_LINE:
        line = line[:_LONGEST_LINE] + " …"
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in line
    )


def format_shape(lengths: Sequence[float]) -> str:
    """Return a shape or a spacing as messages show it, such as 512×512×40 or 5×0.57×0.57."""
    return "×".join(
        f"{length:.0f}" if isinstance(length, int) or length >= 1000 else f"{length:.3g}"
        for length in lengths
    )


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts 10 after 9, and worker 10 after worker 9.

    >>> sorted(["w-10", "w-9", "w-9b"], key=natural_key)
    ['w-9', 'w-9b', 'w-10']
    """
    return [(int(digits or -1), text) for digits, text in re.findall(r"(\d{1,18})|(\D+)", name)]


def first_few(names: Sequence[str], most: int = 3) -> str:
    """Return the first names of a list, and the number of the others: a, b, c and 1 more."""
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to end a message about an unknown name: the nearest known one, if any."""
    known = sorted(known)
    # Fewer than three letters are part of too many names.
    longer = [other for other in known if len(name) >= 3 and name in other]
    nearest = longer or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def format_value(value: object) -> str:
    """Return a setting's value as messages show it."""
    if isinstance(value, list | dict | set):
        return f"a {type(value).__name__}"  # its text may be of any length
    if isinstance(value, tuple):
        return ",".join(map(format_value, value))
    return "none" if value is None else str(value)
