"""Text for messages: plurals, sizes, durations, suggestions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# Messages may quote text of a damaged file, of any length.
_LONGEST_LINE = 2000


def plural(n: int, noun: str) -> str:
    """Return a number with its noun.

    Examples
    --------
    >>> plural(1, "case"), plural(2, "case")
    ('1 case', '2 cases')
    """
    return f"{n} {noun}" + ("" if n == 1 else "s")


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes with its unit.

    Examples
    --------
    >>> format_bytes(153_400_000), format_bytes(512)
    ('153.4 MB', '512 bytes')
    """
    if n_bytes < 1000:
        return f"{n_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        n_bytes /= 1000
        if n_bytes < 1000 or unit == "TB":
            break
    return f"{n_bytes:.1f} {unit}"


def format_time(seconds: float) -> str:
    """Return a time span with its units.

    Examples
    --------
    >>> format_time(2.51), format_time(7384)
    ('2.5 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def escape_line(text: str) -> str:
    r"""Return a text on one line, its control characters escaped.

    Examples
    --------
    >>> escape_line(f"a.nii:\n{chr(7)} bad")
    'a.nii: \\x07 bad'
    """
    line = " ".join(text.split())
    if len(line) > _LONGEST_LINE:
        line = line[:_LONGEST_LINE] + " …"
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in line
    )


def format_shape(lengths: Sequence[float]) -> str:
    """Return a shape or a spacing as messages show it.

    Examples
    --------
    >>> format_shape((512, 512, 40)), format_shape((5.0, 0.5703125, 0.5703125))
    ('512×512×40', '5×0.57×0.57')
    """
    return "×".join(
        f"{length:.0f}" if isinstance(length, int) or length >= 1000 else f"{length:.3g}"
        for length in lengths
    )


def first_few(names: Sequence[str], most: int = 3) -> str:
    """Return the first names of a list, and the number of the others.

    Examples
    --------
    >>> first_few(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def why_not_written(n_failed: int, n_left: int) -> str:
    """Return why planned cases have no slices: failed, or not run yet.

    Examples
    --------
    >>> why_not_written(1, 4)
    '1 failed, see failures.csv; 4 not run yet, repeat the run command to continue'
    """
    why = [f"{n_failed} failed, see failures.csv"] if n_failed else []
    why += [f"{n_left} not run yet, repeat the run command to continue"] if n_left > 0 else []
    return "; ".join(why)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to end a message about an unknown name: the nearest known one, if any.

    Examples
    --------
    >>> did_you_mean("windowsize", ["window_size", "plane"])
    '; did you mean window_size?'
    >>> did_you_mean("x", ["window_size", "plane"])
    ''
    >>> did_you_mean("brain", ["abdomen_1", "mr_brain_1", "mr_brain_2"])
    '; did you mean mr_brain_1?'
    """
    known = sorted(known)
    # Fewer than three letters are part of too many names.
    longer = [other for other in known if len(name) >= 3 and name in other]
    nearest = longer or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def format_value(value: object) -> str:
    """Return a setting's value as messages show it."""
    if isinstance(value, list | dict | set):
        return f"a {type(value).__name__}"  # its text may be of any length
    return "none" if value is None else str(value)
