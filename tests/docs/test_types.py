"""Type checks of a user's program, as an editor or mypy makes them, without plugins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fences import README, code_of
from repository import ROOT

# By line: a part of the error that mypy reports, or None.
_PROGRAM = [
    ("import dask_slicer as ds", None),
    ("from pathlib import Path", None),
    ("config = ds.RunConfig(input_dir='scans', output_dir=Path('slices'), clip_min=None)", None),
    ("reveal_type(config.input_dir)", "pathlib.Path"),
    ("ds.run(config, window_size=1, plane='sagittal', memory='4GB', only=['a'])", None),
    ("ds.plan('ct_abdomen', input_dir='scans', output_dir='slices', plane=None)", None),
    ("ds.submit({'input_dir': 'scans'}, log_file='run.log').result()", None),
    ("ds.run(config, windowsize=1)", 'Unexpected keyword argument "windowsize"'),
    ("ds.plan(config, plane='oblique')", 'Argument "plane" to "plan" has incompatible type'),
    ("ds.submit(config, jobs='four')", 'Argument "jobs" to "submit" has incompatible type'),
    ("ds.RunConfig(input_dir='scans')", 'Missing named argument "output_dir"'),
    ("ds.RunConfig(input_dir='a', output_dir='b', seed=None)", 'Argument "seed" to "RunConfig"'),
]


@pytest.mark.slow
def test_the_examples_pass_a_strict_type_check_and_wrong_settings_do_not(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("\n".join(line for line, _ in _PROGRAM))
    for page in (README, ROOT / "docs" / "quickstart.md"):
        for number, code in enumerate(code_of(page, "python")):
            (tmp_path / f"{page.stem}_{number}.py").write_text(code, encoding="utf-8")
    (inline,) = re.findall(
        r'^python -c "(.*SliceDataset.*)"$', "".join(code_of(README, "sh")), re.M
    )
    (tmp_path / "inline.py").write_text(inline)
    files = sorted(path.name for path in tmp_path.glob("*.py"))
    assert len(files) >= 5
    (tmp_path / "mypy.ini").write_text("[mypy]\n")  # not the settings of this repository
    # silent: errors within the package are not the user's; an installed package has none shown.
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *files],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    expected = {
        f"program.py:{number}": text for number, (_, text) in enumerate(_PROGRAM, 1) if text
    }
    messages = [
        line
        for line in checked.stdout.splitlines()
        if " error: " in line or "Revealed type" in line
    ]
    assert [":".join(line.split(":")[:2]) for line in messages] == list(expected), checked.stdout
    for line, text in zip(messages, expected.values(), strict=True):
        assert text in line
