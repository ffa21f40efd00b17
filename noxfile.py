"""Sessions of nox: every check of the project, each in an environment of its own.

`nox -l` lists them, and `nox -s lint types` runs two of them. Arguments after `--` go to pytest:
`nox -s tests -- tests/config -k memory`. `.ci/run` and the workflows on GitHub run these sessions.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.version import Version

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = True  # a set that was not tested is a failure

# The lowest Python of `requires-python`, and those that may be the newest, best first.
OLDEST = "3.11"
NEWEST = ("3.14", "3.13")
# What `oldest` and `newest` run: a short set that uses each dependency.
VERSIONS = "versions and not slow"
# A release of which there are wheels without CUDA.
TORCH = "torch==2.13.0"


def pytest(session: nox.Session, *options: str) -> None:
    """Run pytest with options, and with the arguments after `--`."""
    # 5: no test is selected, as by `slow` where only tests of one of its two kinds are asked for.
    codes = (0, 5) if session.posargs else (0,)
    session.run("python", "-m", "pytest", *options, *session.posargs, success_codes=codes)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and lint (ruff)."""
    session.install("ruff>=0.8")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types (mypy, strict)."""
    session.install(".[test]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the default tests, a few minutes."""
    session.install(".[test]")
    pytest(session)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests: processes, kills, hosts, Slurm, browsers, fuzzing."""
    session.install(".[test,browser,docs,notebooks]")
    try:
        session.install(".[fuzz]")
    except nox.command.CommandFailed:
        session.warn("atheris cannot be installed here: tests of fuzzing are skipped")
    # What waits runs beside what computes: four at a time suit two CPUs. Tests of faults share
    # nothing; of others, those of a file share what they have started.
    beside = ("--numprocesses=4", "-p", "no:nbmake")  # which takes seconds to import
    pytest(session, "-m", "slow and faults", *beside, "--durations=10")
    pytest(session, "-m", "slow and not faults", *beside, "--dist=loadfile", "--durations=15")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site; a broken link or name is an error."""
    session.install(".[docs]")
    site = session.posargs[0] if session.posargs else f"{session.create_tmp()}/site"
    session.run("sphinx-build", "-W", "--keep-going", "docs", site)


@nox.session
def notebooks(session: nox.Session) -> None:
    """Run the notebooks from top to bottom."""
    session.install(".[test,notebooks]", TORCH)
    # Without the options of our own tests: a notebook is no module, and its warnings no errors.
    own = ("--override-ini=addopts=", "--override-ini=filterwarnings=")
    pytest(session, *own, "--nbmake", "--nbmake-timeout=300", "notebooks")


@nox.session
def training(session: nox.Session) -> None:
    """Run the examples and readers that need torch, MONAI, pandas, xarray and OpenCV."""
    session.install(".[test,train]", TORCH, "opencv-python-headless>=4.10")
    files = (
        "assembly/test_metrics.py",
        "core/test_sixteen_bit.py",
        "docs/test_docs.py",
        "output/test_png.py",
        "output/test_zarr_writer.py",
        "training/test_batches.py",
        "training/test_dataset.py",
        "training/test_loader.py",
        "training/test_loader_benchmark.py",
        "training/test_normalization.py",
        "training/test_png.py",
        "training/test_torch.py",
    )
    pytest(session, *(f"tests/{file}" for file in files))
    # Workers that start without torch in memory; the session `slow` has no torch.
    pytest(session, "-m", "slow", "--numprocesses=2", "tests/training/test_torch.py")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Run the benchmarks, in small."""
    session.install(".[test,benchmarks]")
    with tempfile.TemporaryDirectory() as work:
        session.run("python", "benchmarks/run.py", "--work", work, "--quick")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it alone, and run it away from the sources."""
    with tempfile.TemporaryDirectory() as work:
        session.run("uv", "build", "--quiet", "--out-dir", f"{work}/dist", external=True)
        (built,) = Path(work, "dist").glob("*.whl")
        session.install("--reinstall-package=dask_slicer", str(built))
        with session.chdir(work):
            typed = "(files('dask_slicer') / 'py.typed').read_bytes()"  # a user's mypy looks for it
            session.run("python", "-c", f"from importlib.resources import files; {typed}")
            session.run("dask-slicer", "demo")
            scans = ("--config", "ct_abdomen", "--input_dir", "dask_slicer_demo/phantoms")
            options = ("--output_dir", "from_wheel", "--num_workers", "0", "--quiet")
            session.run("dask-slicer", "run", *scans, *options)
            session.run("dask-slicer", "report", "from_wheel")
            if not Path("from_wheel", "report.html").stat().st_size:
                session.error("from_wheel/report.html is empty")


@nox.session(python=OLDEST)
def oldest(session: nox.Session) -> None:
    """Run a short set of tests with the lower bounds of pyproject.toml."""
    session.install("--upgrade", "--resolution=lowest-direct", ".[test]")
    frozen = session.run("uv", "pip", "freeze", "--quiet", external=True, silent=True)
    check_lower_bounds(session, frozen or "")
    # Old packages use what newer ones below them have deprecated: that is not ours to mend.
    kinds = ("DeprecationWarning", "PendingDeprecationWarning")
    pytest(session, "-m", VERSIONS, *(f"-Wdefault::{kind}" for kind in kinds))


def check_lower_bounds(session: nox.Session, frozen: str) -> None:
    """End the session with an error where another version than the lower bound is installed."""
    installed = dict(line.split("==") for line in frozen.splitlines() if "==" in line)
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in (*project["dependencies"], *project["optional-dependencies"]["test"]):
        requirement = Requirement(line)
        version = installed[requirement.name]
        bounds = {Version(specifier.version) for specifier in requirement.specifier}
        if bounds and Version(version) not in bounds:
            session.error(
                f"{line}: {version} is the lowest that can be installed; raise the lower bound"
            )
        session.log(f"{requirement.name} {version}")


def newest_python() -> str:
    """Return the newest Python that was found; if none was, one that nox will report missing."""
    for python in NEWEST:
        program = shutil.which(f"python{python}")
        # A name that pyenv keeps for a Python that is not chosen is found, but does not start.
        if program and not subprocess.run([program, "-c", ""], check=False).returncode:  # noqa: S603, fixed names
            return python
    return NEWEST[-1]


@nox.session(python=newest_python())
def newest(session: nox.Session) -> None:
    """Run a short set of tests with the newest packages, on the newest Python found."""
    session.install("--upgrade", ".[test]")
    session.run("uv", "pip", "freeze", "--quiet", external=True)
    pytest(session, "-m", VERSIONS)
