"""How records look in a notebook: small tables of HTML, without colours of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from dask_slicer.words import count, times

if TYPE_CHECKING:
    from dask_slicer.cases import Case
    from dask_slicer.config import RunConfig
    from dask_slicer.journal import FailedCase
    from dask_slicer.plans import CasePlan, RunPlan

# Rows of a table, before the rest is only counted.
_MOST_ROWS = 20
# Characters of a value, before its middle is left out.
_LONGEST = 200
_CELL = ' style="text-align: left; vertical-align: top; padding: 1px 12px 1px 0"'


def card(title: str, *parts: str) -> str:
    """Return a title with tables below it, which were made by functions of this module."""
    return f"<div><strong>{_shown(title)}</strong>{''.join(parts)}</div>"


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """Return a table of names and values.

    Examples
    --------
    >>> "a &lt;b&gt;" in facts([("case", "a <b>")])
    True
    """
    lines = [
        f'<tr><th scope="row"{_CELL}>{_shown(name)}</th><td{_CELL}>{_shown(value)}</td></tr>'
        for name, value in rows
    ]
    return f"<table>{''.join(lines)}</table>"


def table(names: Sequence[str], rows: Sequence[Sequence[object]], *, of: str) -> str:
    """Return a table with a head; of a long one the first rows, and how many more there are.

    Parameters
    ----------
    names : sequence of str
        Of the columns.
    rows : sequence
    of : str
        What a row is, as `count` takes it.
    """
    if not rows:
        return ""
    head = "".join(f"<th{_CELL}>{_shown(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td{_CELL}>{_shown(value)}</td>" for value in row) + "</tr>"
        for row in rows[:_MOST_ROWS]
    )
    more = len(rows) - _MOST_ROWS
    rest = f"<div>… and {count(more, f'more {of}')}</div>" if more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def folded(title: str, part: str) -> str:
    """Return a part that is shown when its title is clicked."""
    return f"<details><summary>{_shown(title)}</summary>{part}</details>"


def failure_table(failures: Sequence[FailedCase]) -> str:
    """Return a table of cases that failed, and why."""
    rows = [(one.case_id, one.kind, one.step, one.message) for one in failures]
    return table(("failed case", "kind", "step", "message"), rows, of="failed case")


def case_card(case: Case) -> str:
    """Return a case as HTML."""
    return card(f"Case {case.case_id}", facts(_files(case)))


def case_plan_card(plan: CasePlan) -> str:
    """Return what is planned of a case as HTML."""
    rows: list[tuple[str, object]] = [("split", plan.split or "none yet")]
    if plan.group and plan.group != plan.case_id:
        rows.append(("group", plan.group))
    if plan.problem is None:
        names = ("slices", "rows×columns", "spacing mm", "stored", "dtype")
        rows += list(zip(names, plan.described(), strict=True))
    else:
        rows.append(("problem", f"{plan.problem.kind}: {plan.problem.message}"))
    return card(f"Case {plan.case_id}", facts(rows + _files(plan.case)))


def plan_card(plan: RunPlan) -> str:
    """Return a plan as HTML: what it comes to, then its cases and what is wrong with them."""
    config = plan.config
    by_split = Counter(case.split for case in plan.cases)
    shares = ", ".join(f"{by_split[split]} {split}" for split in plan.splits)
    channels = count((2 * config.window_size + 1) * plan.n_modalities, "channel")
    rows: list[tuple[str, object]] = [
        ("input", config.input_dir),
        ("layout", f"{plan.layout} ({plan.reason})"),
        ("cases", f"{len(plan.cases)} ({shares})"),
        ("slices", f"{plan.n_slices} {config.plane}, {channels}, {config.format}"),
        ("output", config.output_dir),
        *(("note", note) for note in plan.notes),
        *(("problem", problem) for problem in plan.problems),
    ]
    names = ("case", "split", "slices", "rows×columns", "spacing mm", "stored", "dtype")
    cases = [
        (case.case_id, case.split, *case.described()) for case in plan.cases if not case.problem
    ]
    return card(
        f"Plan of {count(len(plan.cases), 'case')}",
        facts(rows),
        table(names, cases, of="case"),
        failure_table(plan.failures),
    )


def config_card(config: RunConfig) -> str:
    """Return a configuration as HTML: what was changed, and behind a click what was not."""
    fields = type(config).model_fields
    values = {name: getattr(config, name) for name in fields}
    changed = [
        (name, value)
        for name, value in values.items()
        if fields[name].is_required() or value != fields[name].default
    ]
    given = {name for name, _ in changed}
    others = [(name, value) for name, value in values.items() if name not in given]
    return card(
        "Configuration of a run",
        facts(_settings(changed)),
        folded(f"{count(len(others), 'setting')} at the default", facts(_settings(others))),
    )


def _settings(settings: Iterable[tuple[str, Any]]) -> list[tuple[str, object]]:
    return [
        (name, "none" if value is None or value == () else _readable(value))
        for name, value in settings
    ]


def _readable(value: Any) -> object:
    in_words = getattr(value, "human_readable", None)
    if in_words:
        return in_words(decimal=True)
    return times(value) if isinstance(value, list) else value


def _files(case: Case) -> list[tuple[str, object]]:
    images = [("image", path) for path in case.images[:_MOST_ROWS]]
    more = len(case.images) - _MOST_ROWS
    rest = [("", f"… and {count(more, 'more image')}")] if more > 0 else []
    return [*images, *rest, ("label", case.label or "none")]


def _shown(value: object) -> str:
    """Return a value as HTML shows it, without the middle of a long one."""
    text = str(value)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return escape(text)
