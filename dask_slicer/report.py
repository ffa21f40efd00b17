"""How a plan looks: in a few lines, as a table, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dask_slicer import machine
from dask_slicer.journal import FailedCase
from dask_slicer.plans import (
    CasePlan,
    RunPlan,
    outliers,
    output_bytes,
    output_files,
    peak_bytes,
    suggest_workers,
)
from dask_slicer.words import count, size

# Rows of the plan's table, and lines of any list, before the rest is only counted.
_MOST_ROWS = 40


def plan_lines(plan: RunPlan) -> list[str]:
    """Return a plan in a few lines."""
    lines = [f"Input: {plan.config.input_dir}", f"Layout: {plan.layout} ({plan.reason})"]
    by_split = Counter(case.split for case in plan.cases)
    shares = ", ".join(f"{by_split[split]} {split}" for split in plan.splits)
    sound = len(plan.cases) - len(plan.failures)
    bad = f", {count(len(plan.failures), 'case')} cannot be run" if plan.failures else ""
    lines.append(f"Plan: {count(len(plan.cases), 'case')} ({shares}){bad}")
    if sound:
        most, likely = _output_bytes(plan)
        lines.append(
            f"Slices: {plan.n_slices} {plan.config.plane}, "
            f"{count((2 * plan.config.window_size + 1) * plan.n_modalities, 'channel')}, "
            f"about {size(likely)} (at most {size(most)}) to {plan.config.output_dir}"
        )
    free = machine.free_bytes(plan.config.output_dir)
    if sound and likely > free:
        lines.append(f"Note: only {size(free)} of disk are free")
    return lines + [f"Note: {note}" for note in plan.notes]


def print_plan(plan: RunPlan, console: Console) -> None:
    """Print a plan: the cases, every problem, and what the run will take."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("case", "split", "slices", "rows×columns", "spacing mm", "stored", "dtype"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for case in plan.cases[:_MOST_ROWS]:
        table.add_row(*map(escape, _row(case)))
    console.print(table)
    if len(plan.cases) > _MOST_ROWS:
        console.print(f"… and {len(plan.cases) - _MOST_ROWS} more")

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    for line in plan_lines(plan):
        say(line)
    for text in outliers(plan.cases)[:_MOST_ROWS]:
        say(f"Odd: {text}")
    needs = plan_needs(plan)
    say(
        f"Output: at most {needs['output_files']} files, {size(needs['output_bytes_estimate'])} "
        f"estimated, {size(needs['output_bytes_at_most'])} at most; "
        f"{size(needs['disk_free_bytes'])} free"
    )
    say(
        f"Memory: {size(needs['peak_bytes_per_worker'])} per worker at most, "
        f"{size(needs['memory_bytes'])} in this machine"
    )
    say(f"Suggested: --num_workers {needs['num_workers']} ({needs['num_workers_reason']})")
    print_problems(plan, console)


def print_problems(plan: RunPlan, console: Console) -> None:
    """Print what is wrong with a plan's dataset and cases, nothing where all is well."""
    for text in (*plan.problems, *map(failure_line, plan.failures)):
        console.print(
            f"Problem: {text}", style="red", markup=False, highlight=False, soft_wrap=True
        )


def plan_json(plan: RunPlan) -> str:
    """Return a plan as JSON, for machines."""
    described = {
        "layout": plan.layout,
        "reason": plan.reason,
        "config": plan.config.model_dump(mode="json"),
        "cases": [_case_json(case, plan) for case in plan.cases],
        "splits": plan.splits,
        "num_cases": len(plan.cases),
        "num_slices": plan.n_slices,
        "outliers": outliers(plan.cases),
        "notes": list(plan.notes),
        "problems": [
            *({"case_id": None, "kind": None, "message": text} for text in plan.problems),
            *(
                {"case_id": failure.case_id, "kind": failure.kind, "message": failure.message}
                for failure in plan.failures
            ),
        ],
        **plan_needs(plan),
    }
    return json.dumps(described, indent=2, ensure_ascii=False)


def plan_needs(plan: RunPlan) -> dict[str, Any]:
    """Return what a run will take of disk and memory, and how many workers suit it."""
    most, likely = _output_bytes(plan)
    sound = [case for case in plan.cases if case.problem is None]
    n_workers, reason = suggest_workers(
        n_cpus=machine.cpu_count(),
        memory_bytes=machine.memory_bytes(),
        peak=plan.peak_bytes,
        n_cases=len(sound),
        rotational=machine.is_rotational(plan.config.output_dir),
    )
    return {
        "output_files": sum(
            output_files(case, plan.config) for case in plan.cases if case.problem is None
        ),
        "output_bytes_at_most": most,
        "output_bytes_estimate": likely,
        "disk_free_bytes": machine.free_bytes(plan.config.output_dir),
        "peak_bytes_per_worker": plan.peak_bytes,
        "memory_bytes": machine.memory_bytes(),
        "num_workers": n_workers,
        "num_workers_reason": reason,
    }


def _output_bytes(plan: RunPlan) -> tuple[int, int]:
    sizes = [output_bytes(case, plan.config) for case in plan.cases if case.problem is None]
    return sum(most for most, _ in sizes), sum(likely for _, likely in sizes)


def _row(case: CasePlan) -> tuple[str, ...]:
    if case.problem is not None:
        return (case.case_id, case.split, "", "cannot be run", "", "", "")
    return (case.case_id, case.split, *case.described())


def _case_json(case: CasePlan, plan: RunPlan) -> dict[str, Any]:
    sound = case.problem is None
    return {
        "case_id": case.case_id,
        "split": case.split,
        "images": list(case.case.images),
        "label": case.case.label,
        "shape": list(case.shape) if sound else None,
        "spacing": list(case.spacing) if sound else None,
        "orientation": case.orientation or None,
        "dtypes": list(case.dtypes),
        "peak_bytes": peak_bytes(case, plan.config) if sound else None,
    }


def failure_line(failure: FailedCase) -> str:
    """Return why a case failed, on one line."""
    return f"{failure.case_id}: {failure.kind} ({failure.step}): {failure.message}"
