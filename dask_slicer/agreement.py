"""What shares that run side by side agree on: settings, cases and splits.

The first of them writes it down, the others check that they would have written the same. It stays
until `merge`, which learns from it what was to be done without looking at a scan.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_slicer.config import RunConfig, changed_settings
from dask_slicer.configfile import build_config, lasting_settings
from dask_slicer.errors import ConfigError, OutputError
from dask_slicer.locks import write_first
from dask_slicer.output import AGREEMENT
from dask_slicer.plans import RunPlan
from dask_slicer.words import count, some

# Beside what an output keeps for life, what must be equal for the shares to be as one run.
_ALSO_EQUAL = ("nonfinite", "allow_missing_labels")
# Where there are no hard links, one may come while another is writing, which takes no time.
_TRIES, _WAIT_SECONDS = 20, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the shares of an output agreed on.

    Attributes
    ----------
    config : RunConfig
        Without settings of one run.
    cases : tuple of str
        The planned ones, of all shares.
    splits : dict of split to list of str
        What splits.json holds: these, and those of earlier runs.
    n_modalities : int
    """

    config: RunConfig
    cases: tuple[str, ...]
    splits: dict[str, list[str]]
    n_modalities: int


def agree(plan: RunPlan) -> Agreement:
    """Return what the first of the shares wrote down; it may be this one.

    Raises
    ------
    OutputError
        If this share would have written something else.
    """
    mine = {
        "config": lasting_settings(plan.config),
        "cases": [case.case_id for case in plan.cases],
        "splits": plan.splits,
        "n_modalities": plan.n_modalities,
    }
    path = plan.config.output_dir / AGREEMENT
    with suppress(FileExistsError):
        write_first(path, json.dumps(mine) + "\n")
    found = read_agreement(plan.config.output_dir)
    if found is None:
        raise OutputError(f"{path} has just been removed; run the same command again")
    _check_equal(found, plan)
    return found


def check_agreement(plan: RunPlan) -> None:
    """Raise if shares have agreed on something else; write nothing.

    Raises
    ------
    OutputError
    """
    found = read_agreement(plan.config.output_dir)
    if found is not None:
        _check_equal(found, plan)


def read_agreement(output_dir: Path) -> Agreement | None:
    """Return what shares agreed on, None where there are none that are not merged yet.

    Raises
    ------
    OutputError
        If it is damaged.
    """
    path = output_dir / AGREEMENT
    for number in range(_TRIES):
        try:
            return _understood(json.loads(path.read_text(encoding="utf-8")), output_dir)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            if number == _TRIES - 1:
                raise OutputError(
                    f"{path} is damaged ({error}); remove it, and run one of the shares again"
                ) from None
        time.sleep(_WAIT_SECONDS)
    return None


def _understood(said: dict[str, Any], output_dir: Path) -> Agreement:
    return Agreement(
        config=build_config({"output_dir": output_dir}, base=said["config"]),  # wherever it is now
        cases=tuple(said["cases"]),
        splits=dict(said["splits"]),
        n_modalities=int(said["n_modalities"]),
    )


def _check_equal(found: Agreement, plan: RunPlan) -> None:
    output_dir = plan.config.output_dir
    changed = changed_settings(found.config, plan.config, also=_ALSO_EQUAL)
    if changed:
        raise OutputError(
            f"other shares in {output_dir} were run with other settings: {'; '.join(changed)}; "
            f"use the same, or run dask-slicer merge {output_dir} first"
        )
    mine = [case.case_id for case in plan.cases]
    differences = [
        f"{count(len(names), 'case')} {how} ({some(names)})"
        for how, names in (
            ("more", _without(mine, found.cases)),
            ("fewer", _without(found.cases, mine)),
        )
        if names
    ]
    if found.splits != plan.splits:
        differences = differences or ["cases in other splits"]
    if found.n_modalities != plan.n_modalities:
        differences.append(f"{plan.n_modalities} images a case, not {found.n_modalities}")
    if differences:
        raise OutputError(
            f"the dataset is not what other shares in {output_dir} found: "
            f"{', '.join(differences)}; run dask-slicer merge {output_dir}, then all shares again"
        )


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    return sorted(set(names) - set(others))
