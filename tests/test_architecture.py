"""Which module may import which: the layers of the package, read from its source with `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest
from repository import ROOT

import dask_slicer

PACKAGE = Path(dask_slicer.__file__).parent

# A module imports from its own layer or a lower one. A new module gets a place here.
LAYERS = {
    "errors": ["errors", "words"],
    "core": [
        "charts",
        "geometry",
        "histograms",
        "intensity",
        "labels",
        "montage",
        "slices",
        "splits",
        "statistics",
        "tiling",
        "volume",
        "windows",
    ],
    "records": [
        "cards",
        "cases",
        "config",
        "configfile",
        "datasets",
        "fields",
        "hearing",
        "histories",
        "journal",
        "layouts",
        "links",
        "lots",
        "manifest",
        "plans",
        "runpage",
        "runsettings",
        "shares",
        "standing",
        "views",
    ],
    "bytes": [
        "additions",
        "agreement",
        "checks",
        "compression",
        "holder",
        "index",
        "locks",
        "metadata",
        "nifti",
        "npz",
        "opened",
        "output",
        "overview",
        "panels",
        "phantom",
        "readers",
        "sampling",
        "shards",
        "slices_csv",
        "store_npz",
        "store_zarr",
        "stores",
        "summary",
        "summing",
    ],
    "run": [
        "around",
        "asking",
        "batch",
        "cluster",
        "earlier",
        "events",
        "execution",
        "faults",
        "findings",
        "flight",
        "watch",
        "forking",
        "graph",
        "interrupts",
        "jobs",
        "keeping",
        "logs",
        "machine",
        "measuring",
        "merging",
        "onlooking",
        "pipeline",
        "planning",
        "preflight",
        "prepare",
        "probes",
        "reach",
        "remote",
        "sending",
        "sweep",
        "tally",
        "tasks",
        "telling",
        "verification",
        "workplaces",
    ],
    "faces": [
        "__init__",
        "__main__",
        "api",
        "benchmark",
        "cli",
        "dataset",
        "display",
        "drawing",
        "handle",
        "notebook",
        "options",
        "page",
        "preview",
        "preview_command",
        "report",
        "report_command",
        "routes",
        "screen",
    ],
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}
HEIGHT = {layer: height for height, layer in enumerate(LAYERS)}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
PLACED = sorted(set(MODULES) & set(LAYER_OF))

# Packages that a layer does without.
FORBIDDEN = {
    "errors": {"numpy", "dask", "distributed", "zarr", "click", "pydantic", "nibabel", "pathlib"},
    "core": {"dask", "distributed", "zarr", "click", "rich", "pydantic", "yaml", "pathlib", "os"},
    "records": {"dask", "distributed", "zarr", "click", "rich"},
    "bytes": {"dask", "distributed", "click", "rich"},
    "run": {"click", "rich"},
    "faces": {"distributed"},
}
# Faces are imported by no one but each other, and that only so.
BETWEEN_FACES = {
    ("__main__", "cli"),
    ("api", "display"),
    ("api", "handle"),
    ("api", "notebook"),
    ("cli", "benchmark"),
    ("cli", "display"),
    ("cli", "options"),
    ("cli", "preview_command"),
    ("cli", "report"),
    ("cli", "report_command"),
    ("cli", "screen"),
    ("display", "report"),
    ("page", "preview"),
    ("handle", "notebook"),
    ("notebook", "display"),
    ("notebook", "report"),
    ("preview", "dataset"),
    ("preview", "drawing"),
    ("preview_command", "options"),
    ("preview_command", "preview"),
    ("report_command", "options"),
    ("report_command", "page"),
}
# What `dask-slicer --help` must not wait for.
SLOW_TO_IMPORT = {"numpy", "dask", "distributed", "nibabel", "zarr", "pydantic"}
# They talk to schedulers and workers.
_TALKERS = ("cluster", "flight", "jobs", "remote", "sending", "watch")
MOST_LINES = 400


@dataclass(frozen=True)
class Import:
    """A dotted name, as far down as the import statement goes, and whether a function does it."""

    name: str
    lazy: bool

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @property
    def ours(self) -> str | None:
        """Return which module of ours it is; a name of the package itself is `__init__`'s."""
        if self.package != "dask_slicer":
            return None
        second = [*self.name.split("."), ""][1]
        return second if second in MODULES else "__init__"

    @property
    def is_distributed(self) -> bool:
        return self.package == "distributed" or f"{self.name}.".startswith("dask.distributed.")


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    return tuple(_imports(tree_of(module), lazy=False))


def _imports(node: ast.AST, *, lazy: bool) -> Iterator[Import]:
    match node:
        case ast.Import(names=names):
            yield from (Import(alias.name, lazy) for alias in names)
        case ast.ImportFrom(module=source, names=names, level=level):
            assert level == 0, "relative imports are not read by this test"
            yield from (Import(f"{source}.{alias.name}", lazy) for alias in names)
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            for child in node.orelse:
                yield from _imports(child, lazy=lazy)
        case _:
            lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from _imports(child, lazy=lazy)


def test_every_module_has_its_place_in_one_layer() -> None:
    placed = [module for modules in LAYERS.values() for module in modules]
    assert sorted(placed) == MODULES
    assert sorted(PACKAGE.rglob("*.py")) == sorted(PACKAGE.glob("*.py")), "the package is flat"


@pytest.mark.parametrize("module", PLACED)
def test_a_module_imports_only_from_its_own_layer_or_a_lower_one(module: str) -> None:
    height = HEIGHT[LAYER_OF[module]]
    too_high = {
        used.ours
        for used in imports_of(module)
        if used.ours in LAYER_OF and HEIGHT[LAYER_OF[used.ours]] > height
    }
    assert not too_high, f"{module} is {LAYER_OF[module]}"


@pytest.mark.parametrize("module", PLACED)
def test_a_module_does_without_what_its_layer_forbids(module: str) -> None:
    used = {used.package for used in imports_of(module)}
    assert not used & FORBIDDEN[LAYER_OF[module]]


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    uses = {
        module: {used.ours for used in imports_of(module) if used.ours is not None}
        for module in MODULES
    }
    TopologicalSorter(uses).prepare()  # raises CycleError, naming the circle


def test_nobody_imports_the_faces() -> None:
    found = {
        (module, used.ours)
        for module in MODULES
        for used in imports_of(module)
        if used.ours in LAYERS["faces"]
    }
    assert found <= BETWEEN_FACES


def test_only_graph_makes_delayed_objects() -> None:
    def makes_delayed(module: str) -> bool:
        imported = any(f"{used.name}.".startswith("dask.delayed.") for used in imports_of(module))
        return imported or any(
            isinstance(node, ast.Attribute)
            and node.attr == "delayed"
            and isinstance(node.value, ast.Name)
            and node.value.id == "dask"
            for node in ast.walk(tree_of(module))
        )

    assert [module for module in MODULES if makes_delayed(module)] == ["graph"]


def test_some_modules_import_distributed_and_only_when_they_are_used() -> None:
    found = {
        (module, used.lazy)
        for module in MODULES
        for used in imports_of(module)
        if used.is_distributed
    }
    assert found == {(module, True) for module in _TALKERS}


def test_modules_are_imported_by_name_only_in_the_public_face() -> None:
    found = {
        module
        for module in MODULES
        for used in imports_of(module)
        if used.name in {"importlib", "importlib.import_module"}
    }
    # A worker is asked whether it can import the module that it is given the name of.
    assert found <= {"__init__", "probes"}


# What talks to schedulers, workers and batch systems; and what it may know.
CLUSTER = {
    "asking",
    "batch",
    "cluster",
    "findings",
    "forking",
    "jobs",
    "keeping",
    "preflight",
    "probes",
    "reach",
    "remote",
    "sending",
}
BELOW_CLUSTER = {
    *("config", "configfile", "fields", "runsettings"),
    *("errors", "interrupts", "machine", "words"),
}


def every_import_of(module: str) -> set[str]:
    """Return the modules of ours that one imports anywhere, for the type checker too."""
    found = {
        used.ours
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for used in _imports(node, lazy=False)
    }
    return {ours for ours in found if ours is not None}


@pytest.mark.parametrize("module", sorted(CLUSTER))
def test_what_talks_to_a_cluster_knows_no_case_no_output_and_no_observer(module: str) -> None:
    assert every_import_of(module) <= CLUSTER | BELOW_CLUSTER


def test_what_is_sent_by_value_imports_nothing_of_ours() -> None:
    assert every_import_of("probes") == set()
    named = [
        node.value
        for node in ast.walk(tree_of("probes"))
        if isinstance(node, ast.Constant) and str(node.value).startswith("dask_slicer.")
    ]
    assert named == []


def test_help_is_shown_without_importing_anything_slow() -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dask_slicer", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    # "import time:   self [us] | cumulative | imported package"
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "dask_slicer.cli" in imported
    assert "run" in shown.stdout
    assert not {name.partition(".")[0] for name in imported} & SLOW_TO_IMPORT


@pytest.mark.parametrize("module", MODULES)
def test_a_module_opens_with_one_line_that_says_what_it_is(module: str) -> None:
    docstring = ast.get_docstring(tree_of(module))
    assert docstring
    first, *others = docstring.splitlines()
    assert first.endswith((".", "!", "?"))
    assert not others or others[0] == ""


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short_enough_to_be_read_in_one_go(module: str) -> None:
    assert len((PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


BENCHMARKS = sorted(ROOT.glob("benchmarks/*.py"))


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.stem)
def test_what_a_benchmark_takes_from_the_package_is_there(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dask_slicer"):
            module = import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
