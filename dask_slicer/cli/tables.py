"""Plans of runs as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dask_slicer.planning.estimate import outliers, plan_lines, plan_needs
from dask_slicer.planning.plan import HEADER_FACTS, CasePlan, RunPlan
from dask_slicer.records import failure_line
from dask_slicer.utils.formatting import format_bytes

# Of the table, and of outliers.
_MOST_ROWS = 40


def print_plan(plan: RunPlan, console: Console) -> None:
    """Print the cases of a plan, its problems, and the disk space and memory of its run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("case", "split", *HEADER_FACTS):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for case in plan.cases[:_MOST_ROWS]:
        table.add_row(*map(escape, _row(case)))
    console.print(table)
    if len(plan.cases) > _MOST_ROWS:
        console.print(f"… and {len(plan.cases) - _MOST_ROWS} more")
    for line in plan_lines(plan):
        _print(line, console)
    for text in outliers(plan.cases)[:_MOST_ROWS]:
        _print(f"Outlier: {text}", console)
    needs = plan_needs(plan)
    lines = (
        f"Output: at most {needs['output_files']} files, "
        f"{format_bytes(needs['output_bytes_estimate'])} "
        f"estimated, {format_bytes(needs['output_bytes_at_most'])} at most; "
        f"{format_bytes(needs['disk_free_bytes'])} free",
        f"Memory: {format_bytes(needs['peak_bytes_per_worker'])} per worker at most, "
        f"{format_bytes(needs['memory_bytes'])} in this machine",
        f"Suggested: --num_workers {needs['num_workers']} ({needs['num_workers_reason']})",
    )
    for line in lines:
        _print(line, console)
    print_problems(plan, console)


def print_problems(plan: RunPlan, console: Console) -> None:
    """Print the problems of a plan."""
    for text in (*plan.problems, *map(failure_line, plan.failures)):
        _print(f"Problem: {text}", console, style="red")


def _print(text: str, console: Console, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _row(case: CasePlan) -> tuple[str, ...]:
    if case.problem is not None:
        return (case.case_id, case.split, "", "cannot be run", "", "", "")
    return (case.case_id, case.split, *case.described())
