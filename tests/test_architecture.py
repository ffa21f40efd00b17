"""The plan of the package: its folders, and which may import which, read from the source."""

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
from typing import TypeGuard

import house
import pytest
from repository import ROOT

import dask_slicer

PACKAGE = Path(dask_slicer.__file__).parent

# Lowest first: a module imports from its own folder or one before it. `__init__` stands for the
# public names of `dask_slicer` itself.
ORDER = [
    "utils",
    "errors",
    "core",
    "records",
    "config",
    "inputs",
    "planning",
    "output",
    "cluster",
    "monitoring",
    "execution",
    "training",
    "assembly",
    "report",
    "api",
    "__init__",
    "cli",
    "__main__",
]
HEIGHT = {folder: height for height, folder in enumerate(ORDER)}
# What these may import of ours, where the order alone would allow more.
NARROWER = {
    "core": {"errors", "utils"},
    "core/steps": {"core", "errors", "utils"},
    "config": {"core/steps", "errors", "utils"},  # how a label map or a range of slices is written
    "inputs": {"core", "errors", "utils"},
    "planning": {"inputs", "config", "records", "core", "errors", "utils"},
    "cluster": {"config", "errors", "utils"},
    "output/formats": {
        *("output/layout.py", "planning", "inputs", "config", "records", "core", "errors", "utils"),
    },
    "inputs/layouts": {
        *(
            "inputs/case.py",
            "inputs/listed_paths.py",
            "inputs/pairing.py",
            "inputs/readers/base.py",
            "inputs/role_words.py",
        ),
        "inputs/tree.py",
        *("core", "errors", "utils"),
    },
    "inputs/readers": {"core", "errors", "utils"},
}
# Packages that only these folders or modules import.
ALLOWED = {
    "click": {"cli"},
    "distributed": {
        "cluster/client.py",
        "cluster/dask_private.py",
        "cluster/jobqueue.py",
        "cluster/local.py",
        "cluster/remote.py",
        "cluster/rpc.py",
        "cluster/upload.py",
        "execution/futures.py",
        "execution/watchdog.py",
    },
    "dask": {"cluster", "execution", "api.py", "utils/system.py"},
    "deflate": {"output/formats/npz_members.py"},
    "jinja2": {"report"},
    "matplotlib": {"cli/benchmark.py", "report"},
    "nibabel": {"assembly/nifti_writer.py", "core", "inputs"},
    "pydantic": {"assembly/volume_files.py", "config", "output/journal.py"},
    "rich": {"cli", "monitoring", "api.py"},
    "tornado": {"monitoring/run_page.py"},
    "h5py": {"output/formats/array_files.py"},
    "yaml": {"config"},
    "zarr": {"output/formats/zarr_writer.py"},
}
# What core, arithmetic on arrays, does without.
NOT_IN_CORE = {"os", "pathlib", "shutil", "tempfile"}
# What `dask-slicer --help` must not wait for.
SLOW_TO_IMPORT = {"numpy", "dask", "distributed", "nibabel", "zarr", "pydantic"}
MOST_LINES, MOST_MODULES = 400, 16


@dataclass(frozen=True)
class Module:
    """A module of the package, by its path in it, such as `core/windows.py`."""

    path: str

    @property
    def dotted(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def folder(self) -> str:
        """Return the folder at the top that it is in, or its own name."""
        return self.path.partition("/")[0].removesuffix(".py")

    def is_in(self, place: str) -> bool:
        return self.path == place or self.path.startswith(f"{place}/") or self.folder == place


MODULES = [Module(path.relative_to(PACKAGE).as_posix()) for path in sorted(PACKAGE.rglob("*.py"))]
BY_NAME = {module.dotted: module for module in MODULES}


@dataclass(frozen=True)
class Import:
    """A dotted name, as far down as the import statement goes, and when it is imported.

    Attributes
    ----------
    name : str
    lazy : bool
        When a function is called.
    typing : bool
        By type checkers alone.
    """

    name: str
    lazy: bool = False
    typing: bool = False

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @property
    def ours(self) -> Module | None:
        """Return which module of ours it is; a name of the package itself is `__init__`'s."""
        if self.package != "dask_slicer":
            return None
        parts = self.name.split(".")[1:]
        while parts and ".".join(parts) not in BY_NAME:
            parts.pop()
        return BY_NAME[".".join(parts) or "__init__"]

    @property
    def is_distributed(self) -> bool:
        return self.package == "distributed" or f"{self.name}.".startswith("dask.distributed.")


@cache
def tree_of(module: Module) -> ast.Module:
    return ast.parse((PACKAGE / module.path).read_text(encoding="utf-8"))


@cache
def imports_of(module: Module) -> tuple[Import, ...]:
    """Return every import, those of functions and for type checkers, too."""
    return tuple(_imports(tree_of(module)))


def _imports(node: ast.AST, *, lazy: bool = False, typing: bool = False) -> Iterator[Import]:
    match node:
        case ast.Import(names=names):
            yield from (Import(alias.name, lazy, typing) for alias in names)
        case ast.ImportFrom(module=source, names=names, level=level):
            assert level == 0, "relative imports are not read by this test"
            yield from (Import(f"{source}.{alias.name}", lazy, typing) for alias in names)
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            for child in node.body:
                yield from _imports(child, lazy=lazy, typing=True)
        case _:
            lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from _imports(child, lazy=lazy, typing=typing)


def uses_of(module: Module) -> set[Module]:
    return {used.ours for used in imports_of(module) if used.ours is not None} - {module}


each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.path)


def test_every_folder_has_its_place_in_the_order() -> None:
    assert sorted({module.folder for module in MODULES}) == sorted(ORDER)


@each_module
def test_a_module_imports_only_from_its_own_folder_or_a_lower_one(module: Module) -> None:
    too_high = {
        used.path for used in uses_of(module) if HEIGHT[used.folder] > HEIGHT[module.folder]
    }
    assert not too_high


@pytest.mark.parametrize(
    ("folder", "module"),
    [(folder, module) for folder in NARROWER for module in MODULES if module.is_in(folder)],
    ids=lambda value: value if isinstance(value, str) else value.path,
)
def test_a_folder_imports_what_its_rule_allows(folder: str, module: Module) -> None:
    others = {
        used.path
        for used in uses_of(module)
        if not any(used.is_in(allowed) for allowed in {folder, *NARROWER[folder]})
    }
    assert not others


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    uses = {module.path: {used.path for used in uses_of(module)} for module in MODULES}
    TopologicalSorter(uses).prepare()  # raises CycleError, naming the circle


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_is_imported_where_its_rule_allows(package: str) -> None:
    importers = [
        module
        for module in MODULES
        for used in imports_of(module)
        if not used.typing
        and (used.package == package or (package == "distributed" and used.is_distributed))
    ]
    assert importers
    assert not {
        module.path
        for module in importers
        if not any(module.is_in(allowed) for allowed in ALLOWED[package])
    }


def test_core_is_arithmetic_without_files() -> None:
    found = {
        (module.path, used.package)
        for module in MODULES
        if module.folder == "core"
        for used in imports_of(module)
        if used.package in NOT_IN_CORE | {"dask", "distributed", "zarr"}
    }
    assert not found


def test_distributed_is_imported_when_it_is_used() -> None:
    eager = {
        module.path
        for module in MODULES
        for used in imports_of(module)
        if used.is_distributed and not (used.lazy or used.typing)
    }
    assert not eager


DASKS_PRIVATE_NAMES = "cluster/dask_private.py"
# Of `multiprocessing`; `tests/cluster/test_forkserver.py` notices when one goes. Of torch;
# `tests/training/test_torch.py` does.
OTHER_PRIVATE_NAMES = {
    "cluster/forkserver.py": {
        *("_concrete_contexts", "_launch", "_forkserver", "_forkserver_pid", "_fd", "_pid"),
    },
    "training/memory.py": {"_new_shared", "_share_fd_cpu_"},
}


@each_module
def test_private_names_of_dask_are_used_in_one_module(module: Module) -> None:
    found = set(_private_names(module)) - OTHER_PRIVATE_NAMES.get(module.path, set())
    assert bool(found) == (module.path == DASKS_PRIVATE_NAMES), found


def _private_names(module: Module) -> Iterator[str]:
    """Yield underscored names that are imported from Dask, or that classes of it may have.

    An underscored attribute counts unless it is one of `self`, `cls`, `os` or `sys`, or the module
    itself defines the name.
    """
    of_dask = set()
    nodes = list(ast.walk(tree_of(module)))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    defined |= {node.attr for node in nodes if _is_set_on_self(node)}
    for used in imports_of(module):
        if used.package in {"dask", "distributed", "dask_jobqueue"}:
            parts = used.name.split(".")
            of_dask.add(parts[-1])
            yield from (used.name for part in parts if _is_private(part))
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls" | "os" | "sys")):
                pass
            case ast.Attribute(attr=name) if _is_private(name) and name not in defined:
                yield name
            case ast.ClassDef(bases=bases, body=body) if {
                base.id for base in bases if isinstance(base, ast.Name)
            } & {"base", *of_dask}:
                for member in body:
                    if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                        yield from (name for name in [member.name] if _is_private(name))


def _is_set_on_self(node: ast.AST) -> TypeGuard[ast.Attribute]:
    match node:
        case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
            return True
    return False


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def test_only_graph_makes_delayed_objects() -> None:
    def makes_delayed(module: Module) -> bool:
        imported = any(
            f"{used.name}.".startswith("dask.delayed.") and not used.typing
            for used in imports_of(module)
        )
        return imported or any(
            isinstance(node, ast.Attribute)
            and node.attr == "delayed"
            and isinstance(node.value, ast.Name)
            and node.value.id == "dask"
            for node in ast.walk(tree_of(module))
        )

    assert [module.path for module in MODULES if makes_delayed(module)] == ["execution/graph.py"]


def test_modules_are_imported_by_name_only_in_the_public_face() -> None:
    found = {
        module.path
        for module in MODULES
        for used in imports_of(module)
        if used.name in {"importlib", "importlib.import_module"}
    }
    assert found <= {"__init__.py", "cluster/probes.py"}


def test_modules_named_in_strings_exist() -> None:
    named = {
        (module.path, node.value)
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("dask_slicer.")
        and node.value.replace(".", "").replace("_", "").isalnum()
        and node.value != "dask_slicer.submit"  # the name of a thread
    }
    assert ("cluster/local.py", "dask_slicer.execution.tasks") in named
    assert not {
        (path, name) for path, name in named if name.removeprefix("dask_slicer.") not in BY_NAME
    }


def test_help_is_shown_without_importing_anything_slow() -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dask_slicer", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    # "import time:   self [us] | cumulative | imported package"
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "dask_slicer.cli.main" in imported
    assert "run" in shown.stdout
    assert not {name.partition(".")[0] for name in imported} & SLOW_TO_IMPORT


def test_a_run_starts_without_what_reads_slices() -> None:
    program = "import sys, dask_slicer.execution.pipeline; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    # Blosc's lock would be reported as leaked when workers are killed.
    assert not {"numcodecs", "zarr"} & set(shown.stdout.split())


@each_module
def test_a_module_opens_with_a_noun_phrase(module: Module) -> None:
    docstring = ast.get_docstring(tree_of(module))
    assert docstring
    first, *others = docstring.splitlines()
    assert first.endswith((".", "!", "?"))
    assert not house.opens_with_a_clause(PACKAGE / module.path)
    assert not others or others[0] == ""


@each_module
def test_a_module_is_short_enough_to_be_read_in_one_go(module: Module) -> None:
    lines = (PACKAGE / module.path).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES


def test_a_folder_has_few_enough_modules_to_be_seen_at_a_glance() -> None:
    modules = {folder: n_modules for folder, (n_modules, *_) in house.counts().items()}
    assert not {folder: n for folder, n in modules.items() if n > MOST_MODULES}


BENCHMARKS = sorted(ROOT.glob("benchmarks/*.py"))


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.stem)
def test_what_a_benchmark_takes_from_the_package_is_there(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dask_slicer"):
            module = import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
