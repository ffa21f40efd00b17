"""The self-contained HTML report of an output."""

from __future__ import annotations

import base64
import shlex
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from dask_slicer.config.dataset_settings import SplitSettings
from dask_slicer.config.file_settings import UNUSED_BY_FORMAT
from dask_slicer.config.schema import RunConfig, SliceSettings
from dask_slicer.errors import DaskSlicerError
from dask_slicer.monitoring.state import STEPS
from dask_slicer.output.layout import CONFIG
from dask_slicer.output.output import Output, open_output, user_file_path, write_user_file
from dask_slicer.planning.step_lines import step_lines
from dask_slicer.records import clip_note
from dask_slicer.report.histogram import chart
from dask_slicer.report.overview import Overview, overview
from dask_slicer.report.volumes import has_volumes, volume_facts
from dask_slicer.utils.formatting import (
    escape_line,
    first_few,
    format_bytes,
    format_time,
    format_value,
    plural,
)

REPORT = "report.html"
_SUFFIXES = (".html", ".htm")  # by which browsers choose

_MOST_SECONDS = 1e9  # more is damage
_N_SLICES, _MOST_NAMES = 12, 20
# In pixels: the width of the page, so that pictures and page have text of one size; narrower if the
# pictures would be too large.
_WIDTHS = (1040, 900, 700)
_MOST_PICTURE_BYTES = 3_000_000


def write_report(
    output_dir: str | Path, file: Path | None = None, *, say: Callable[[str], None]
) -> Path:
    """Write the report of an output, or of volumes, to `file`, by default `REPORT` in it."""
    if has_volumes(Path(output_dir)):
        path = Path(output_dir).absolute()
        file = user_file_path(path, file, name=REPORT, suffixes=_SUFFIXES)
        page = (
            page_environment()
            .get_template("volumes.html")
            .render(name=path.name, path=path, now=time.time(), **volume_facts(path))
        )
        write_user_file(file, page.encode("utf-8", "backslashreplace"))
        return file
    output = open_output(output_dir)
    file = user_file_path(output.path, file, name=REPORT, suffixes=_SUFFIXES)
    facts = overview(output)
    pictures, why_none = _pictures(output, facts)
    if why_none:
        say(f"Note: no pictures of slices in the report: {why_none}")
    page = _render(output, facts, pictures, why_none)
    # File names may hold bytes that are not UTF-8; the page is UTF-8.
    write_user_file(file, page.encode("utf-8", "backslashreplace"))
    return file


def _pictures(output: Output, facts: Overview) -> tuple[dict[str, bytes], str]:
    """Return PNG pictures of slices, light and dark, or the reason why there are none."""
    if not facts.n_slices:
        return {}, ""
    if find_spec("matplotlib") is None:
        return {}, "matplotlib is missing; to add it: python -m pip install 'dask_slicer[plot]'"
    from dask_slicer.report.preview import picture

    try:
        for width in _WIDTHS:
            light, dark = (
                picture(output, n_slices=_N_SLICES, width=width, dark=dark, window_size=0)
                for dark in (False, True)
            )
            if len(light) + len(dark) <= _MOST_PICTURE_BYTES:
                break
    except (DaskSlicerError, OSError) as error:
        return {}, escape_line(str(error))
    return {"light": light, "dark": dark}, ""


def page_environment() -> Environment:
    """Return what pages are rendered with."""
    environment = Environment(
        loader=PackageLoader("dask_slicer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "line": lambda value: escape_line(str(value)),
        "names": lambda ids: escape_line(first_few(ids, _MOST_NAMES)),
        "number": "{:,}".format,
        "measure": measure,
        "limit": _limit,
        "setting": format_value,
        "size": format_bytes,
        "duration": format_time,
        "share": share,
        "utc": lambda at: datetime.fromtimestamp(at, UTC),
        "base64": lambda content: base64.b64encode(content).decode(),
    }
    environment.globals |= {
        "count": lambda n, noun: plural(n, noun).replace(str(n), f"{n:,}", 1),
        "chart": chart,
        "version": version("dask_slicer"),
    }
    return environment


def _render(
    output: Output, facts: Overview, pictures: dict[str, bytes], why_no_pictures: str
) -> str:
    kinds = Counter((failure.kind, failure.step) for failure in facts.failures)
    return (
        page_environment()
        .get_template("report.html")
        .render(
            output=output,
            facts=facts,
            pictures=pictures,
            why_no_pictures=why_no_pictures,
            n_pictured=min(_N_SLICES, facts.n_slices),
            now=time.time(),
            again=_again(output),
            settings=_settings(output.config),
            steps=STEPS,
            step_lines=step_lines(output.config),
            kinds=kinds.most_common(_MOST_NAMES),
            clip_note=clip_note,
            **{
                name: _seconds(output.summary.get(name))
                for name in ("elapsed_seconds", "slices_per_second")
            },
        )
    )


def _seconds(value: object) -> float | None:
    """Return a number of dataset_info.json; None if it is none."""
    is_number = isinstance(value, int | float) and 0 <= value < _MOST_SECONDS
    return float(value) if is_number else None  # type: ignore[arg-type]


def _again(output: Output) -> str:
    """Return the command that continues or repeats the run."""
    command = ["dask-slicer", "run", "--config", str(output.path / CONFIG)]
    last = output.summary.get("config")
    if isinstance(last, dict) and last.get("output_dir", str(output.path)) != str(output.path):
        command += ["--output_dir", str(output.path)]  # the output was moved
    return shlex.join(command)


def _settings(config: RunConfig) -> list[tuple[str, str, bool, str]]:
    """Return (name, value, is changed, meaning) of what shapes slices, and of changed settings."""
    always = {"input_dir", *SliceSettings.model_fields, *SplitSettings.model_fields}
    always.discard(UNUSED_BY_FORMAT[config.format])
    rows = []
    for name in dict.fromkeys(("input_dir", *RunConfig.model_fields)):
        field = RunConfig.model_fields[name]
        value = config.ratios()["val"] if name == "val_ratio" else getattr(config, name)
        changed = not field.is_required() and getattr(config, name) != field.default
        if name in always or (changed and name != "output_dir"):
            meaning = (field.description or "").partition(" [default")[0]
            rows.append((name, _value_text(value), changed, meaning))
    return rows


def _value_text(value: object) -> str:
    match value:
        case None | () | "":
            return "–"
        case bool():
            return "yes" if value else "no"
        case tuple() | list():
            return first_few([*map(format_value, value)], _MOST_NAMES)
        case float():
            return f"{value:g}"
    return str(value)


def _limit(value: float | tuple[float | None, ...] | None) -> str:
    """Return a clip limit, or those of the modalities."""
    if isinstance(value, tuple):
        return ", ".join(map(_limit, value))
    return "none" if value is None else measure(value)


def share(part: int, whole: int) -> str:
    """Return a share in percent; 0% and 100% are exact.

    >>> share(1, 3), share(9999, 10_000), share(1, 10_000), share(0, 5), share(0, 0)
    ('33%', 'over 99%', 'under 1%', '0%', '–')
    """
    if not whole:
        return "–"
    percent = round(100 * part / whole)
    if percent == 100 and part < whole:
        return "over 99%"
    return "under 1%" if part and not percent else f"{percent}%"


def measure(value: float) -> str:
    """Return a measured number in four digits, with an exponent only if it needs one.

    >>> measure(-999.9999944), measure(123456.7), measure(0.70312), measure(1.5e-7)
    ('−1,000', '123,457', '0.7031', '1.5e−07')
    """
    text = f"{value:,.0f}" if 999.95 <= abs(value) < 1e9 else f"{value:.4g}"
    return text.replace("-", "−")
