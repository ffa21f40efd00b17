"""Scripts that start workers, as Python runs them: with and without a guard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dask_slicer.cluster.main_module import is_guarded

RUN = "dask_slicer.run(input_dir={scans!r}, output_dir={slices!r}, num_workers={workers})"
LONE = f"import dask_slicer\nprint('begun')\n{RUN}\n"
IN_A_FUNCTION = f"import dask_slicer\ndef main():\n    {RUN}\nmain()\n"
BELOW_ANOTHER_CONDITION = f"import dask_slicer\nif dask_slicer:\n    {RUN}\n"
IN_A_THREAD = f"import dask_slicer\ndask_slicer.submit(*(), **dict({RUN[16:-1]})).result()\n"
GUARDED = f"import dask_slicer\nif __name__ == '__main__':\n    {RUN}\n"
MEND = 'put the run below `if __name__ == "__main__":`, or use num_workers=0'


@pytest.fixture
def python(dataset, tmp_path):
    """Return a function that writes a script, and runs it, or gives it on standard input."""
    dataset.add("ct")
    root = Path(__file__).parents[2]

    def call(script: str, *arguments: str, workers: int = 1) -> subprocess.CompletedProcess[str]:
        places = {"scans": str(dataset.root), "slices": str(tmp_path / "slices")}
        text = script.format(**places, workers=workers)
        (tmp_path / "script.py").write_text(text)
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(root)},
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return call


def check_refused(result: subprocess.CompletedProcess[str], words: str, tmp_path: Path) -> None:
    assert result.returncode == 1
    *traceback, last = result.stderr.splitlines()
    assert words in last
    assert last.endswith(MEND)
    assert len(traceback) < 60  # of this program alone, and no word of spawning
    assert not any(word in result.stderr for word in ("bootstrapping", "spawn", "freeze_support"))
    assert not [*(tmp_path / "slices").glob("*")]


@pytest.mark.parametrize(
    "arguments", [["-"], pytest.param([], marks=pytest.mark.slow)], ids=["dash", "pipe"]
)
@pytest.mark.parametrize("script", [LONE, GUARDED], ids=["lone", "guarded"])
def test_a_script_from_standard_input_is_refused_with_a_line(
    python, tmp_path, script, arguments
) -> None:
    result = python(script, *arguments)
    check_refused(result, "cannot read it from standard input: save it as a file, and", tmp_path)


@pytest.mark.parametrize(
    ("script", "line"),
    [(LONE, 3), (IN_A_FUNCTION, 4), (IN_A_THREAD, 2), (BELOW_ANOTHER_CONDITION, 3)],
    ids=["lone", "function", "thread", "condition"],
)
@pytest.mark.parametrize(
    "arguments",
    [["script.py"], pytest.param(["-m", "script"], marks=pytest.mark.slow)],
    ids=["file", "module"],
)
def test_a_script_without_a_guard_is_refused_with_a_line(
    python, tmp_path, script, line, arguments
) -> None:
    result = python(script, *arguments)
    check_refused(result, f"would run line {line} of ", tmp_path)
    assert result.stdout.count("begun") == (script == LONE)


@pytest.mark.parametrize(
    ("script", "arguments", "workers"),
    [
        pytest.param(GUARDED, ["script.py"], 1, id="guarded"),
        pytest.param(LONE, ["script.py"], 0, id="lone, without workers"),
        pytest.param(LONE, ["-"], 0, id="standard input, without workers"),
        pytest.param(
            LONE, ["-c", "exec(open('script.py').read())"], 1, id="command", marks=pytest.mark.slow
        ),
    ],
)
def test_other_scripts_run(python, script, arguments, workers) -> None:
    result = python(script, *arguments, workers=workers)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Wrote 10 slices" in result.stdout


@pytest.mark.parametrize(
    ("source", "line", "expected"),
    [
        ("run()", 1, False),
        ("if a:\n  pass\nrun()", 3, False),
        ("if a:\n  run()", 2, False),
        ("if 'scans':\n  run()", 2, False),
        ("if __name__ != '__main__':\n  run()", 2, False),
        ("if __name__ == 'script':\n  run()", 2, False),
        ("if __name__ == '__main__':\n  pass\nelse:\n  run()", 4, False),
        ('if "__main__" == __name__:\n  run()', 2, True),
        ("if __name__ == '__main__' and a:\n  run()", 2, True),
        ("if a:\n  pass\nelif __name__ == '__main__':\n  for b in a:\n    run()", 5, True),
        ("with a:\n  if __name__ == '__main__':\n    run(\n      b)", 4, True),
        ("try:\n  run()\nfinally:\n  pass", 2, False),
        ("def f():\n  if a:\n    run()\nf()", 4, False),
        ("run(", 1, True),  # not the program that is running
    ],
)
def test_a_line_below_a_guard_is_guarded(source, line, expected) -> None:
    assert is_guarded(source.encode(), line) == expected
