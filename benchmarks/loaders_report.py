"""The section on loaders of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tables import Rows, table, times

_NO_FIGURE = "not measured"
# Of what a method that is faster than ours does without, by its group.
_REASONS = {
    "limit": (
        "has nothing to decode or check: its files are the integers as they are in memory, "
        "{size:.1f} times as large as ours, and its float32 is cast and not normalised"
    ),
    "other": "reads what has been decoded and normalised, {size:.1f} times as large as ours",
    "memory": "keeps all volumes in memory, as float32",
    "before": "is our own version before",
}


def loaders_section(results: dict[str, Any]) -> str:
    """Return the section, of `loaders.json`."""
    phantoms, scans = results["phantoms"], results.get("scans")
    template = Path(__file__).with_name("loaders.md.in").read_text(encoding="utf-8")
    head = ["loader", "images", "in", "windows/s", "times ours", "MB a case"]
    if scans:
        head[5:5] = ["real scans, windows/s", "times ours"]
    return template.format(
        batch_size=results["batch_size"],
        batches=phantoms["batches"],
        repeats=phantoms["repeats"],
        cases=phantoms["cases"],
        shape=_shape(phantoms),
        scans=f"; of real scans, from {_cases(scans)} of {_shape(scans)}" if scans else "",
        table=table(tuple(head), _rows(phantoms, scans)),
        behind=_behind(phantoms),
        ratios_table=table(
            ("compared", "phantoms", "real scans") if scans else ("compared", "ratio"),
            _ratio_rows(phantoms, scans),
        ),
        versions=", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        how="\n".join(_how(phantoms)),
    )


def _rows(phantoms: dict[str, Any], scans: dict[str, Any] | None) -> Rows:
    of_scans = {_key(row): row for row in (scans or {"methods": []})["methods"]}
    order = {"ours": 0, "before": 1, "other": 2, "limit": 3}
    for row in sorted(phantoms["methods"], key=lambda row: order[row["group"]]):
        figures = [_rate(row), _ratio(row["times_ours"])]
        if scans:
            other = of_scans.get(_key(row))
            figures += [_rate(other), _ratio(other["times_ours"])] if other else [_NO_FIGURE] * 2
        size = f"{row['mb_a_case']:.0f}" if row["mb_a_case"] else "in memory"
        yield row["name"], row["values"], row["processes"], *figures, size


def _ratio_rows(phantoms: dict[str, Any], scans: dict[str, Any] | None) -> Rows:
    for name in phantoms["ratios"]:
        yield (
            name,
            *(_ratio(of[name]) for of in (phantoms["ratios"], (scans or {}).get("ratios")) if of),
        )


def _behind(results: dict[str, Any]) -> str:
    """Return which methods are faster than ours, and why."""
    methods = [row for row in results["methods"] if row["group"] != "ours"]
    faster = [row for row in methods if (row["times_ours"] or 0) > 1]
    if not faster:
        return "Ours is ahead of each."
    store = next(row["mb_a_case"] for row in results["methods"] if row["group"] == "ours")
    lines = []
    for row in faster:
        group = row["group"] if row["mb_a_case"] else "memory"
        reason = _REASONS[group].format(size=row["mb_a_case"] / store)
        lines.append(f"- {_called(row)}, {_ratio(row['times_ours'])}: it {reason}.")
    return "Ours is ahead of each but these:\n\n" + "\n".join(lines)


def _how(results: dict[str, Any]) -> list[str]:
    """Return a line on each method; float32 and integers of one share it."""
    names: dict[str, list[str]] = {}
    for row in results["methods"]:
        name = f"{row['name']}, {row['processes']}"
        if name not in names.setdefault(row["how"], []):
            names[row["how"]].append(name)
    return [f"- {'; '.join(of_method)}: {how}." for how, of_method in names.items()]


def _called(row: dict[str, Any]) -> str:
    return f"{row['name']}, {row['values']}, {row['processes']}"


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["name"], row["values"], row["processes"]


def _rate(row: dict[str, Any]) -> str:
    return f"{row['windows_per_second']:.0f}"


def _ratio(ratio: float | None) -> str:
    return _NO_FIGURE if ratio is None else f"{ratio:.2f} ×"


def _cases(results: dict[str, Any]) -> str:
    return f"{results['cases']} case{'s' * (results['cases'] > 1)}"


def _shape(results: dict[str, Any]) -> str:
    return times([*results["shape"][1:], results["shape"][0]])
