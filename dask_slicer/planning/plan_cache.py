"""Cache of plans: an unchanged dataset is not planned again.

A plan counts as long as the settings, the list of files, and size, mtime and ctime of every file
are as before: of each file under the input, and of others that its cases are read from. An error of
the cache is logged, and has no other effect.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from dask_slicer.config.schema import RunConfig
from dask_slicer.inputs import header_cache
from dask_slicer.inputs.case import Case, Mask
from dask_slicer.inputs.layouts.base import FileRole
from dask_slicer.inputs.tree import FileTree
from dask_slicer.planning.plan import CasePlan, PlanePlan, RunPlan
from dask_slicer.records import FailedCase
from dask_slicer.utils.threads import map_files

# Failures that another look at the same files may not show.
_PASSING = {"MissingFile", "PermissionDenied", "Unexpected"}
# Path, size, mtime and ctime in ns; -1 for a link to nothing.
_Stamp = tuple[str, int, int, int]

_LOG = logging.getLogger(__name__)


class PlanCache:
    """The last plan of a dataset, if nothing has changed since.

    Parameters
    ----------
    config : RunConfig
    assigned : mapping of case id to split
        From earlier runs into the output.
    structures : mapping of str to int, optional
        From the same.
    earlier : RunConfig, optional
        The configuration of the output.
    """

    def __init__(
        self,
        config: RunConfig,
        assigned: Mapping[str, str],
        structures: Mapping[str, int] | None,
        earlier: RunConfig | None = None,
    ) -> None:
        self._config = config
        self._file = header_cache.cache_file(config.input_dir, "plan")
        self._started = time.time_ns()
        offset = [] if earlier is None else [earlier.offset]
        known = [assigned, structures, offset, config.like is not None]
        self._earlier = json.dumps(known, sort_keys=True)
        self._stamps: list[_Stamp] = []
        self._key = ""
        self.tree: FileTree | None = None  # of a folder, once it is listed

    def recall(self) -> RunPlan | None:
        """Return the plan, None if it must be made."""
        if self._file is None:
            return None
        with _no_collection():
            return self._recall(self._file)

    def _recall(self, file: Path) -> RunPlan | None:
        try:
            self._look()
            tables = dict(header_cache.read_tables(file))
            state = json.loads(tables.get("state", "{}"))
            others = [tuple(stamp) for stamp in state.get("others", ())]
            if state.get("key") != self._key or _stamps(s[0] for s in others) != others:
                return None
            return _unpacked(json.loads(tables["plan"]), self._config)
        except Exception as error:  # any error: a plan needs no cache
            _LOG.debug("The cached plan cannot be used: %s", error)
            return None

    def keep(self, plan: RunPlan, seen: Mapping[str, tuple[int, int, int]]) -> None:
        """Keep a plan that has just been made of files, with what these were like before."""
        if self._file is None or not self._key or not _can_be_kept(plan):
            return
        try:
            root = os.path.join(self._config.input_dir, "")
            listed = {os.path.normpath(root + stamp[0]) for stamp in self._stamps}
            outside = {path: stamp for path, stamp in seen.items() if path not in listed}
            others = [(path, *stamp) for path, stamp in outside.items()]
            others += _stamps(sorted(_folders(outside, self._config.input_dir.parent)))
            newest = max((max(stamp[2:]) for stamp in (*self._stamps, *others)), default=0)
            if newest > self._started - header_cache.RACY_NS:
                return
            text = json.dumps(_packed(plan))
            if _unpacked(json.loads(text), self._config) == plan:
                state = json.dumps({"key": self._key, "others": others})
                header_cache.write_tables(self._file, {"state": state, "plan": text})
        except Exception as error:  # any error: a plan needs no cache
            _LOG.debug("The plan is not cached: %s", error)

    def _look(self) -> None:
        """List the files under the input as they are now, before they are read."""
        config = self._config
        paths: tuple[str, ...] = ()
        named = [os.fspath(path) for path in (config.splits, config.slice_list) if path is not None]
        if config.input_dir.is_dir():
            self.tree = FileTree.scan(config.input_dir, skip=config.output_dir)
            paths = self.tree.paths
        else:
            named.append(os.fspath(config.input_dir))
        self._stamps = _stamps(paths, folder=os.path.join(config.input_dir, "")) + _stamps(named)
        lines = [f"{path}\0{size} {mtime} {ctime}" for path, size, mtime, ctime in self._stamps]
        text = "\n".join([config.model_dump_json(), self._earlier, *lines])
        self._key = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Look for no garbage while many objects are made that all stay: it takes as long again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _stamps(paths: Iterable[str], *, folder: str = "") -> list[_Stamp]:
    """Return what files are like now."""

    def stamp(path: str) -> _Stamp:
        try:
            status = os.stat(folder + path)  # noqa: PTH116, as in HeaderCache
        except (OSError, ValueError):
            return path, -1, 0, 0
        return path, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    return map_files(stamp, list(paths))


def _folders(paths: Iterable[str], root: Path) -> set[str]:
    """Return the folders in which files were looked for: a file that comes may be meant instead."""
    folders: set[Path] = set()
    for path in map(Path, paths):
        folders.add(path.parent)
        if root in path.parents:
            folders.update(path.parents[: path.parents.index(root) + 1])
    return set(map(os.fspath, folders))


def _can_be_kept(plan: RunPlan) -> bool:
    """Return whether a plan depends only on files that were seen, not on some that were missing."""
    return not (
        plan.problems
        or any(failure.kind in _PASSING for failure in plan.failures)
        or any("" in case.case.images for case in plan.cases)
    )


# -- as JSON ---------------------------------------------------------------------------------------


def _packed(plan: RunPlan) -> dict[str, Any]:
    """Return a plan, without its settings, as JSON can hold it."""
    content = _given(plan)
    del content["config"]
    content["offset"] = plan.config.offset
    content["cases"] = [_packed_case(case) for case in plan.cases]
    content["files"] = [(role.path, role.role, role.detail, role.case_id) for role in plan.files]
    content["label_names"] = list(plan.label_names.items())
    if plan.label_values is not None:
        content["label_values"] = list(plan.label_values.items())
    return content


def _packed_case(plan: CasePlan) -> dict[str, Any]:
    content = _given(plan)
    content["case"] = case = _given(plan.case)
    if plan.case.masks:
        case["masks"] = [_given(mask) for mask in plan.case.masks]
    if plan.label_names:
        content["label_names"] = list(plan.label_names.items())
    if plan.planes:
        content["planes"] = [own.facts() for own in plan.planes]
    if plan.problem is not None:
        content["problem"] = _given(plan.problem)
    return content


def _unpacked(content: dict[str, Any], config: RunConfig) -> RunPlan:
    """Return the plan that `_packed` returned as JSON, with these settings."""
    content["cases"] = tuple([_unpacked_case(case) for case in content["cases"]])
    content["files"] = tuple(
        [
            FileRole(path=path, role=role, detail=detail, case_id=case_id)
            for path, role, detail, case_id in content["files"]
        ]
    )
    content["label_names"] = dict(content["label_names"])
    if "label_values" in content:
        content["label_values"] = dict(content["label_values"])
    config = config.model_copy(update={"offset": content.pop("offset")})
    return RunPlan(config=config, **_with_tuples(content))


def _unpacked_case(content: dict[str, Any]) -> CasePlan:
    case = content["case"]
    if "masks" in case:
        case["masks"] = [Mask(**mask) for mask in case["masks"]]
    content["case"] = Case(**_with_tuples(case))
    for name in ("files", "header_notes", "scaling"):
        if name in content:
            content[name] = [*map(tuple, content[name])]
    if "label_names" in content:
        content["label_names"] = dict(content["label_names"])
    if "planes" in content:
        content["planes"] = [PlanePlan(**_with_tuples(own)) for own in content["planes"]]
    if "problem" in content:
        content["problem"] = FailedCase(**_with_tuples(content["problem"]))
    return CasePlan(**_with_tuples(content))


def _given(record: Any) -> dict[str, Any]:
    """Return the fields of a record that differ from their defaults."""
    return {
        name: value
        for name, default in _defaults(record.__class__)
        if (value := getattr(record, name)) != default
    }


@lru_cache
def _defaults(kind: type) -> tuple[tuple[str, Any], ...]:
    def default(field: Field[Any]) -> Any:
        factory = field.default_factory
        return field.default if factory is MISSING else factory()

    return tuple((field.name, default(field)) for field in fields(kind))


def _with_tuples(content: dict[str, Any]) -> dict[str, Any]:
    """Return fields with tuples for lists, which no record has."""
    for name, value in content.items():
        if type(value) is list:
            content[name] = tuple(value)
    return content
