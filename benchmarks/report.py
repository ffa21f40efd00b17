"""What was measured, as a page and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaders_report import loaders_section
from rows_report import rows_of_page
from tables import Rows, table, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = {
    *("compare", "overhead", "memory", "startup", "scaling", "formats", "compressors"),
    *("assembling", "loaders", "many_workers", "pages", "png", "resampling", "rows"),
}
_BLUE, _GREY = "tab:blue", "0.65"


def write_report(results: Path, root: Path) -> None:
    """Write docs/performance.md and docs/images/performance.png.

    Parameters
    ----------
    results : Path
        Folder with the JSON of every part.
    root : Path
        Of the repository.
    """
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in results.iterdir()}
    missing = _PARTS - found.keys()
    if missing:
        print(f"no report yet: {', '.join(sorted(missing))} not measured")
        return
    _plot(found, root / "docs" / "images" / "performance.png")
    (root / "docs" / "performance.md").write_text(_page(found), encoding="utf-8")


def _page(found: dict[str, Any]) -> str:
    compare, startup, scaling = found["compare"], found["startup"], found["scaling"]
    ratios, overhead = compare["ratios"], found["overhead"]
    template = Path(__file__).with_name("performance.md.in").read_text(encoding="utf-8")
    return template.format(
        machine=_machine(compare),
        short_table=_short_table(found),
        repeats=compare["repeats"],
        cases=compare["cases"],
        twice_the_cases=2 * compare["cases"],
        shape=times(compare["shape"]),
        workers=compare["workers"],
        compare_table=table(("", "ratio"), _compare_rows(compare)),
        ours_cpu=f"{ratios['ours, CPU seconds a case, excluded']:.2f}",
        difference=f"{compare['largest_difference']:.1g}",
        overhead_workers=overhead["workers"],
        overhead_table=table(("", "figure"), _overhead_rows(overhead)),
        memory_table=table(("volume", "largest worker", "allowed"), _memory_rows(found["memory"])),
        first_case=f"{startup['first_case_seconds']:.1f}",
        startup_workers=startup["workers"],
        help=f"{startup['help_seconds']:.2f}",
        startup_repeats=startup["repeats"],
        scaling_cases=scaling["cases"],
        scaling_table=table(
            ("workers", "seconds", "speed-up", "slices/s", "MB/s out", "peak RSS"),
            _scaling_rows(scaling),
        ),
        many_workers_table=table(*_many_workers_rows(found["many_workers"])),
        many_workers_repeats=found["many_workers"]["repeats"],
        many_workers_seconds=found["many_workers"]["seconds"],
        many_workers_slices=found["many_workers"]["slices_a_case"],
        cores=found["many_workers"]["machine"]["cores"],
        **_milliseconds_a_case(found["many_workers"]),
        **_pages(found["pages"]),
        **rows_of_page(found["rows"]),
        resampling_table=table(
            ("", "CPU", "times ours", "memory"), _resampling_rows(found["resampling"])
        ),
        assembling_shape=times(found["assembling"]["shape"]),
        assembling_table=table(
            ("", "time", "times nibabel", "memory"), _assembling_rows(found["assembling"])
        ),
        assembling_volume=f"{found['assembling']['mb_of_the_volume']:.0f}",
        assembling_repeats=found["assembling"]["repeats"],
        resampling_shape=times(found["resampling"]["shape"]),
        resampling_repeats=found["resampling"]["repeats"],
        png_shape=times(found["png"]["shape"]),
        png_repeats=found["png"]["repeats"],
        png_table=table(
            ("", "size, times Pillow's", "CPU of a slice", "times `.npz`", "read"),
            _png_rows(found["png"]),
        ),
        formats=_formats(found["formats"], found["compressors"]),
        loaders=loaders_section(found["loaders"]),
        uncompressed_bytes=f"{ratios['uncompressed / ours, bytes']:.1f}",
    )


def _compare_rows(found: dict[str, Any]) -> Rows:
    ratios, medians = found["ratios"], found["medians"]
    said = {
        "usual / ours, wall, included": "the usual script takes longer, start-up included",
        "usual / ours, CPU, included": "the usual script takes more CPU time, start-up included",
        "usual / ours, CPU, excluded": "the usual script takes more CPU time for a case",
        "uncompressed / ours, CPU, excluded": (
            "without compression it takes more CPU time for a case"
        ),
        "uncompressed / ours, bytes": "and its files are larger",
        "ours / limit, CPU, excluded": "we take more CPU time for a case than the limit",
        "usual / zarr, source, CPU, excluded": (
            "the usual script takes more CPU time for a case than `--format zarr --dtype source`"
        ),
        "zarr, source / ours, CPU, excluded": "which takes, of the CPU time for `.npz`",
        "ours / zarr, source, bytes": "and whose files are smaller than `.npz`",
    }
    for name, text in said.items():
        yield text, f"{ratios[name]:.2f} ×" if ratios[name] < 10 else f"{ratios[name]:.0f} ×"
    smaller = medians["usual"]["written"] / medians["ours"]["written"]
    yield "files of the usual script (zlib, level 6) against ours (ISA-L)", f"{smaller:.2f} ×"


def _overhead_rows(found: dict[str, Any]) -> Rows:
    few, some, many = found["counts"]
    yield f"Dask alone, {some:,} cases", f"{found['ms_per_case_of_raw_dask']:.1f} ms a case"
    yield f"dask_slicer, {some:,} cases", f"{found['ms_per_case']:.1f} ms a case"
    yield f"dask_slicer, {many:,} cases", f"{found['ms_per_case_of_many']:.1f} ms a case"
    yield (
        "memory of the command's own process (client and scheduler)",
        f"{found['own_rss_mb']['few']:.0f} MB at {few:,} cases, "
        f"{found['own_rss_mb']['many']:.0f} MB at {many:,}",
    )


def _pages(found: dict[str, Any]) -> dict[str, str]:
    of_npz, of_zarr = found["reports"]["npz"], found["reports"]["zarr"]
    return {
        "report_slices": f"{found['slices']:,}",
        "report_repeats": str(found["repeats"]),
        "report_npz": f"{of_npz['seconds']:.1f}",
        "report_zarr": f"{of_zarr['seconds']:.1f}",
        "report_rss": f"{max(of_npz['peak_rss_mb'], of_zarr['peak_rss_mb']):.0f}",
        "report_mb": f"{max(of_npz['page_mb'], of_zarr['page_mb']):.1f}",
    }


def _assembling_rows(found: dict[str, Any]) -> Rows:
    names = {"files": "`dask-slicer assemble`", "writer": "`VolumeWriter`"}
    for method, name in names.items():
        yield (
            name,
            f"{found['seconds'][method]:.1f} s",
            f"{found['times_nibabel'][method]:.2f} ×",
            f"{found['mb_beside_start'][method]:.0f} MB",
        )


def _resampling_rows(found: dict[str, Any]) -> Rows:
    names = {"ours": "dask_slicer", "scipy": "`scipy.ndimage.zoom`", "SimpleITK": "SimpleITK"}
    for method, name in names.items():
        yield (
            name,
            f"{found['cpu_seconds'][method]:.1f} s",
            f"{found['times_ours'][method]:.1f} ×",
            f"{found['mb_beside_input_and_output'][method]:.0f} MB",
        )


def _png_rows(found: dict[str, Any]) -> Rows:
    for kind, size in found["size_of_pillow"].items():
        taken = found["milliseconds_a_slice"].get(kind)
        yield (
            kind,
            f"{size:.2f} ×",
            "" if taken is None else f"{taken:.1f} ms",
            "" if taken is None else f"{found['times_npz'][kind]:.2f} ×",
            f"{found['milliseconds_to_read'][kind]:.1f} ms",
        )
    name = "Pillow, 8 bit"
    taken = found["milliseconds_a_slice"][name]
    yield name, "1.00 ×", f"{taken:.1f} ms", f"{found['times_npz'][name]:.2f} ×", ""


def _memory_rows(found: dict[str, Any]) -> Rows:
    for run in found["runs"]:
        shape = times([*found["shape"], run["depth"]])
        yield shape, f"{run['peak_rss_mb']:.0f} MB", f"{run['allowed_mb']:.0f} MB"


def _scaling_rows(found: dict[str, Any]) -> Rows:
    for row in found["rows"]:
        yield (
            f"{row['n_workers']}" if row["n_workers"] else "0 (in this process)",
            f"{row['seconds']:.1f}",
            f"{row['speedup']:.2f}",
            f"{row['slices_per_second']:.0f}",
            f"{row['megabytes_out_per_second']:.0f}",
            f"{row['peak_rss'] / 1e6:.0f} MB",
        )


def _many_workers_rows(found: dict[str, Any]) -> tuple[tuple[str, ...], Rows]:
    """Return head and rows: lengths of a case downwards, numbers of workers across."""
    shares = {(row["seconds_a_case"], row["workers"]): row["busy_share"] for row in found["runs"]}
    lengths, counts = (sorted(set(numbers)) for numbers in zip(*shares, strict=True))
    rows = (
        (f"{length:g} s", *(f"{100 * shares[length, n_workers]:.0f} %" for n_workers in counts))
        for length in lengths
    )
    return ("a case takes", *(f"{n_workers} workers" for n_workers in counts)), rows


def _milliseconds_a_case(found: dict[str, Any]) -> dict[str, str]:
    """Return the CPU time that a case costs each part of Dask, at the highest rate there was."""
    fastest = max(found["runs"], key=lambda row: row["cases_per_second"])
    return {
        f"{name}_ms": f"{1e3 * cores / fastest['cases_per_second']:.1f}"
        for name, cores in fastest["cores"].items()
    } | {"most_cases": f"{fastest['cases_per_second']:.0f}"}


def _formats(found: dict[str, Any], compressors: dict[str, Any]) -> str:
    template = Path(__file__).with_name("formats.md.in").read_text(encoding="utf-8")
    return template.format(
        formats_table=table(
            ("format", "MB a case", "CPU a case, written", "read a window", "DataLoader"),
            _formats_rows(found),
        ),
        windows_table=table(("read at random", "a window"), _windows_rows(found)),
        planes=times(compressors["shape"][:2]),
        compressors_table=table(
            ("codec", *next(iter(compressors["codecs"].values()))), _compressors_rows(compressors)
        ),
    )


def _formats_rows(found: dict[str, Any]) -> Rows:
    for name, n_bytes in found["bytes_a_case"].items():
        delivered = found["dataloader_samples_per_second"][name]
        yield (
            name,
            f"{n_bytes / 1e6:.1f}",
            f"{found['cpu_seconds_a_case'][name]:.2f} s",
            f"{found['milliseconds_a_window'][f'SliceDataset, {name}']:.1f} ms",
            "not measured" if delivered is None else f"{delivered:.0f} slices/s",
        )


def _windows_rows(found: dict[str, Any]) -> Rows:
    for name, milliseconds in found["milliseconds_a_window"].items():
        yield name, f"{milliseconds:.1f} ms"


def _compressors_rows(found: dict[str, Any]) -> Rows:
    for codec, of_kind in found["codecs"].items():
        yield (
            codec,
            *(
                f"{100 * one['share']:.1f} %, {one['encode_ms']:.2f}, {one['decode_ms']:.2f} ms"
                for one in of_kind.values()
            ),
        )


def _short_table(found: dict[str, Any]) -> str:
    ratios, overhead = found["compare"]["ratios"], found["overhead"]
    return table(
        ("compared", "ratio"),
        [
            (
                "CPU time of the usual script (`get_fdata`, `savez_compressed`) for a case",
                f"{ratios['usual / ours, CPU, excluded']:.0f} × ours",
            ),
            (
                "its wall time for 16 CTs, our start-up included",
                f"{ratios['usual / ours, wall, included']:.0f} × ours",
            ),
            (
                "CPU time of the script without compression for a case",
                f"{ratios['uncompressed / ours, CPU, excluded']:.1f} × ours, "
                f"files {ratios['uncompressed / ours, bytes']:.1f} × as large",
            ),
            (
                "our CPU time against inflating, deflating once and writing alone",
                f"{ratios['ours / limit, CPU, excluded']:.2f} ×",
            ),
            (
                "cost of a tiny case against Dask alone with three empty tasks",
                f"{overhead['ours_over_raw_dask']:.2f} ×",
            ),
        ],
    )


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return f"Measured on {machine['cores']} cores with {machine['memory_gb']} GB of memory"


def _plot(found: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _plot_cpu(left, found["compare"])
    _plot_overhead(middle, found["overhead"])
    _plot_scaling(right, found["scaling"])
    figure.savefig(path, dpi=110)


def _plot_cpu(axes: Axes, found: dict[str, Any]) -> None:
    ratios = found["ratios"]
    ours = ratios["ours, CPU seconds a case, excluded"]
    seconds = {
        "usual script": ours * ratios["usual / ours, CPU, excluded"],
        "uncompressed": ours * ratios["uncompressed / ours, CPU, excluded"],
        "dask_slicer": ours,
        "limit": ours / ratios["ours / limit, CPU, excluded"],
    }
    _bars(axes, seconds, "{:.2g} s")
    axes.set_xscale("log")
    axes.set_title(f"CPU time a case of {times(found['shape'])}", fontsize=10)


def _plot_overhead(axes: Axes, found: dict[str, Any]) -> None:
    _, some, many = found["counts"]
    milliseconds = {
        f"Dask alone\n{some:,} cases": found["ms_per_case_of_raw_dask"],
        f"dask_slicer\n{some:,} cases": found["ms_per_case"],
        f"dask_slicer\n{many:,} cases": found["ms_per_case_of_many"],
    }
    _bars(axes, milliseconds, "{:.1f} ms")
    axes.set_title("time a case of 16×16×8", fontsize=10)


def _bars(axes: Axes, values: dict[str, float], form: str) -> None:
    colors = [_BLUE if name.startswith("dask_slicer") else _GREY for name in values]
    bars = axes.barh(list(values), list(values.values()), color=colors)
    axes.bar_label(bars, [form.format(value) for value in values.values()], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _plot_scaling(axes: Axes, found: dict[str, Any]) -> None:
    rows = [row for row in found["rows"] if row["n_workers"] > 0]
    workers = [row["n_workers"] for row in rows]
    axes.plot(workers, workers, "--", color=_GREY, label="ideal")
    axes.plot(workers, [row["speedup"] for row in rows], "o-", color=_BLUE, label="measured")
    axes.set_xticks(workers)
    axes.set_ylim(bottom=0)
    axes.set_title("speed-up by number of workers", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
