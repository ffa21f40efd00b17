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
from itertools import chain
from pathlib import Path
from typing import Any

from dask_slicer.config.schema import RunConfig
from dask_slicer.inputs import header_cache
from dask_slicer.inputs.cache_files import cache_file, read_cache, write_cache
from dask_slicer.inputs.case import Case, Mask
from dask_slicer.inputs.header_cache import HeaderCache
from dask_slicer.inputs.layouts.base import FileRole
from dask_slicer.inputs.tree import FileTree, Progress, counted, no_progress
from dask_slicer.planning.plan import CasePlan, PlanePlan, RunPlan
from dask_slicer.records import CasePlans, FailedCase
from dask_slicer.utils.packed import PackedList
from dask_slicer.utils.stamps import NO_FILE, Stamp
from dask_slicer.utils.threads import iter_files

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
    earlier : RunConfig or None
        The configuration of the output.
    headers : HeaderCache
        It gets what the files of a folder were like before they were read.
    progress : callable, optional
    """

    def __init__(
        self,
        config: RunConfig,
        assigned: Mapping[str, str],
        structures: Mapping[str, int] | None,
        earlier: RunConfig | None,
        headers: HeaderCache,
        progress: Progress = no_progress,
    ) -> None:
        self._config = config
        self._headers, self._progress = headers, progress
        self._file = cache_file(config.input_dir, "plan")
        self._started = time.time_ns()
        offset = [] if earlier is None else [earlier.offset]
        self._known = self._known_text(assigned, structures or {}, offset)
        self._is_first = earlier is None and not assigned
        self._named: list[_Stamp] = []
        self._n_listed = 0
        self._digest = hashlib.sha256()  # of settings and files
        self._key = ""
        self.tree: FileTree | None = None  # of a folder, once it is listed

    def recall(self) -> RunPlan | None:
        """Return the plan, None if it must be made."""
        with _no_collection():
            return self._recall(self._file)

    def _recall(self, file: Path | None) -> RunPlan | None:
        try:
            self._look()
            if file is None:
                return None
            records = ((name, text) for name, texts in read_cache(file) for text in texts)
            _, text = next(records, ("", "{}"))
            state = json.loads(text)
            others = [tuple(stamp) for stamp in state.get("others", ())]
            if self._key not in state.get("keys", ()) or _stamps(s[0] for s in others) != others:
                return None
            return _unpacked(records, self._config)
        except FileNotFoundError:
            return None
        except Exception as error:  # any error: a plan needs no cache
            _LOG.debug("The cached plan cannot be used: %s", error)
            return None

    def keep(self, plan: RunPlan) -> None:
        """Keep a plan that has just been made."""
        if self._file is None or not self._key or not _can_be_kept(plan):
            return
        try:
            newest, others = 0, []
            for number, (path, stamp) in enumerate(self._headers.stamps.items()):
                newest = max(newest, *stamp[1:])
                if number >= self._n_listed:
                    others.append((self._headers.absolute(path), *stamp))
            paths = [path for path, *_ in others]
            others += _stamps(sorted(_folders(paths, self._config.input_dir.parent)))
            newest = max(newest, *(max(stamp[2:]) for stamp in (*self._named, *others)), 0)
            if newest > self._started - header_cache.RACY_NS:
                return
            records = ((name, text) for name, texts in _packed(plan).items() for text in texts)
            if _unpacked(records, self._config) == plan:
                state = json.dumps({"keys": self._keys(plan), "others": others})
                write_cache(self._file, {"state": [state], **_packed(plan)})
        except Exception as error:  # any error: a plan needs no cache
            _LOG.debug("The plan is not cached: %s", error)

    def _look(self) -> None:
        """List the files under the input as they are now, before they are read."""
        config = self._config
        named = [os.fspath(path) for path in (config.splits, config.slice_list) if path is not None]
        if config.input_dir.is_dir():
            self.tree = FileTree.scan(
                config.input_dir, skip=config.output_dir, progress=self._progress
            )
            folder, paths = os.path.join(config.input_dir, ""), self.tree.paths
            stamps = iter_files(lambda path: _stamp_of(folder + path), paths)
            stamps = counted(stamps, "looking at files", len(paths), self._progress)
            for path, stamp in zip(paths, stamps, strict=True):
                self._headers.stamps[path] = stamp
            self._n_listed = len(paths)
        else:
            named.append(os.fspath(config.input_dir))
        self._named = _stamps(named)
        stamped = chain(self._headers.stamps.items(), ((path, own) for path, *own in self._named))
        digest = hashlib.sha256(config.model_dump_json().encode())
        for path, (size, mtime, ctime) in stamped:
            line = f"\n{path}\0{size} {mtime} {ctime}"
            digest.update(line.encode(errors="surrogatepass"))
        self._digest = digest
        self._key = self._key_of(self._known)

    def _keys(self, plan: RunPlan) -> list[str]:
        """Return the keys of a plan: when it was made, and when a first run has started with it."""
        assigned = {case_id: split for split, ids in plan.splits.items() for case_id in ids}
        after = self._known_text(assigned, plan.structures, [plan.config.offset])
        return [self._key, *([self._key_of(after)] if self._is_first else [])]

    def _known_text(
        self, assigned: Mapping[str, str], structures: Mapping[str, int], offset: list[int | None]
    ) -> str:
        """Return what earlier runs decide."""
        known = [assigned, structures, offset, self._config.like is not None]
        return json.dumps(known, sort_keys=True)

    def _key_of(self, known: str) -> str:
        digest = self._digest.copy()
        digest.update(f"\n{known}".encode())
        return digest.hexdigest()


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


def _stamps(paths: Iterable[str]) -> list[_Stamp]:
    """Return what files are like now."""
    return list(iter_files(lambda path: (path, *_stamp_of(path)), paths))


def _stamp_of(path: str) -> Stamp:
    try:
        return Stamp.of(path)
    except (OSError, ValueError):
        return NO_FILE


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


def _packed(plan: RunPlan) -> dict[str, Iterable[str]]:
    """Return a plan, without its settings, as JSON texts by names of tables; each is read once."""
    content = _given(plan)
    del content["config"], content["cases"]
    content.pop("files", None)
    content["offset"] = plan.config.offset
    content["label_names"] = list(plan.label_names.items())
    if plan.label_values is not None:
        content["label_values"] = list(plan.label_values.items())
    roles = ((role.path, role.role, role.detail, role.case_id) for role in plan.files)
    return {
        "plan": [json.dumps(content)],
        "cases": (json.dumps(_packed_case(case)) for case in plan.cases),
        "files": map(json.dumps, roles),
    }


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


def _unpacked(records: Iterable[tuple[str, str]], config: RunConfig) -> RunPlan:
    """Return the plan of texts that `_packed` returned, with these settings."""
    content: dict[str, Any] = {}
    cases, files = CasePlans[CasePlan](), PackedList[FileRole]()
    for name, text in records:
        value = json.loads(text)
        if name == "cases":
            cases.append(_unpacked_case(value))
        elif name == "files":
            path, role, detail, case_id = value
            files.append(FileRole(path=path, role=role, detail=detail, case_id=case_id))
        else:
            content = value
    content["label_names"] = dict(content["label_names"])
    if "label_values" in content:
        content["label_values"] = dict(content["label_values"])
    config = config.model_copy(update={"offset": content.pop("offset")})
    return RunPlan(config=config, cases=cases, files=files, **_with_tuples(content))


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
