"""Make the pictures of the documentation from phantoms: `python docs/make_pictures.py`.

Needs the extras `plot` and `browser`, and a Chromium.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import faults
import matplotlib.pyplot as plt
import numpy as np

import dask_slicer
from dask_slicer.config.loader import build_config
from dask_slicer.core.geometry import spacing
from dask_slicer.core.windows import window_indices
from dask_slicer.execution.graph import target_of
from dask_slicer.execution.tasks import load_case, slice_case
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.report.html_report import write_report
from dask_slicer.report.preview import show_slices

IMAGES = Path(__file__).parent / "images"
PAGE = {"width": 1100, "height": 700}
FAILING = "phantom_014"  # among the largest, which are run first


def main() -> None:
    """Make all of them."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        steps(Path(folder))
        slices = preview(Path(folder))
        report(slices)
        dashboard(Path(folder))


def preview(folder: Path) -> Path:
    """Slice phantoms, and show some of the slices with their labels; return where they are."""
    scans = folder / "scans"
    write_dataset(scans, n_cases=6, shape=(144, 128, 60), spacing=(2.0, 2.0, 4.0), noise=4.0)
    settings = {
        "input_dir": scans,
        "output_dir": folder / "slices",
        "window_size": 0,
        "num_workers": 0,
    }
    config = build_config(settings, base="ct_abdomen")
    dask_slicer.run(config, progress=False)
    figure = show_slices(config.output_dir, n_slices=8)
    figure.savefig(IMAGES / "preview.png")
    shrink(IMAGES / "preview.png")
    return config.output_dir


def steps(folder: Path) -> None:
    """Draw what each step makes of a phantom."""
    scans = folder / "one"
    write_dataset(scans, n_cases=1, shape=(144, 112, 24), spacing=(2.0, 2.0, 6.0), noise=20.0)

    def stack(**settings: Any) -> dict[str, Any]:
        plan = dask_slicer.plan({"input_dir": scans, "clip_min": -200, "clip_max": 300} | settings)
        (case,) = plan.cases
        target = target_of(plan.config, steps=plan.steps)
        (result,) = slice_case(load_case(case, target), target).result
        planes = np.stack([p for _, p in result.planes(range(result.shape[0]))], axis=1)
        return {"image": planes, "label": result.label, "spacing": spacing(result.affine)}

    plain = stack()
    mapped = stack(label_map="1:1 2,4,5:2 *:0")
    draw("label_map", [(plain, "label"), (mapped, "--label_map '1:1 2,4,5:2 *:0'")], labels=True)
    draw(
        "crop", [(plain, "scan"), (stack(crop="label", crop_margin=5), "--crop label")], labels=True
    )
    windows = stack(ct_windows="abdomen,lung,bone", clip_min=None, clip_max=None)
    draw("windows", [(windows, f"--ct_windows {name}") for name in ("abdomen", "lung", "bone")])
    fine = stack(spacing="2,2,2", plane="coronal")
    draw("spacing", [(stack(plane="coronal"), "6 mm"), (fine, "--spacing 2,2,2")])
    fits = [
        (stack(size=112, fit=fit), f"--fit {fit}") for fit in ("crop_pad", "resize", "letterbox")
    ]
    draw("size", fits)
    neighbours(folder)


def neighbours(folder: Path) -> None:
    """Draw the slices in a window of `context_mm`, in scans of two slice distances."""
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.3), dpi=100)
    for axis, distance in zip(axes, (6.0, 3.0), strict=True):
        n_slices, scans = round(144 / distance), folder / f"scans of {distance:g} mm"
        shape, steps = (144, 112, n_slices), (2.0, 2.0, distance)
        write_dataset(scans, n_cases=1, shape=shape, spacing=steps, noise=20.0)
        plan = dask_slicer.plan(
            {"input_dir": scans, "clip_min": -200, "clip_max": 300, "plane": "coronal"}
        )
        (case,) = plan.cases
        target = target_of(plan.config, steps=plan.steps)
        result = slice_case(load_case(case, target), target).result
        (_, (plane,)), *_ = result.planes([result.shape[0] // 2])
        _, row, column = spacing(result.affine)
        axis.imshow(plane, cmap="gray", aspect=row / column)
        middle = n_slices // 2
        window = window_indices(
            middle,
            n_slices=n_slices,
            window_size=2,
            padding_mode="replicate",
            step=12 / distance,
        )
        for index in window:
            axis.axhline(index, color="tab:red" if index == middle else "tab:orange", lw=1.5)
        axis.set_title(f"slices {distance:g} mm apart\n--context_mm 12", fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(IMAGES / "step_context.png")
    plt.close(figure)
    shrink(IMAGES / "step_context.png")


def draw(name: str, stacks: list[tuple[dict[str, Any], str]], *, labels: bool = False) -> None:
    """Draw the middle slice of stacks side by side, in the proportions of the body."""
    figure, axes = plt.subplots(1, len(stacks), figsize=(3.2 * len(stacks), 3.0), dpi=100)
    for number, (axis, (stack, title)) in enumerate(zip(axes, stacks, strict=True)):
        image = stack["image"][number if name == "windows" else 0]
        _, row, column = stack["spacing"]
        axis.imshow(image[len(image) // 2], cmap="gray", aspect=row / column)
        if labels:
            label = stack["label"][len(image) // 2]
            shown = np.ma.masked_equal(label, 0)
            axis.imshow(shown, cmap="tab10", vmin=0, vmax=9, alpha=0.7, aspect=row / column)
        axis.set_title(f"{title}\n{image.shape[1]} × {image.shape[2]}", fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(IMAGES / f"step_{name}.png")
    plt.close(figure)
    shrink(IMAGES / f"step_{name}.png")


def report(slices: Path) -> None:
    """Look at the top of the page about an output."""
    with opened_page() as page:
        page.goto(write_report(slices, say=print).as_uri())
        as_if_at_home(page, slices.parent)
        page.screenshot(path=IMAGES / "report.png")
    shrink(IMAGES / "report.png")


def dashboard(folder: Path) -> None:
    """Look at Dask's dashboard, and the page beside it, while phantoms are sliced; one fails."""
    many = folder / "many"
    write_dataset(many, n_cases=40, shape=(160, 144, 60), spacing=(2.0, 2.0, 4.0))
    command = [
        *(sys.executable, "-m", "dask_slicer", "run", "--num_workers", "2"),
        *(
            "--input_dir",
            many,
            "--output_dir",
            folder / "seen",
            "--compression_level",
            "9",
            "--retries",
            "0",
        ),
    ]
    run = subprocess.Popen(  # noqa: S603, our own words
        [str(word) for word in command], stdout=subprocess.PIPE, text=True,
        env=os.environ | faults.variables({FAILING: "raise"}),
    )  # fmt: skip
    try:
        link = run.stdout.readline().removeprefix("Dashboard: ").strip()
        with opened_page() as page:
            page.goto(link)
            wait_for_a_failure(folder / "seen" / "journal.jsonl")
            page.wait_for_timeout(4000)
            page.screenshot(path=IMAGES / "dashboard.png")
            page.goto(link.replace("/status", "/dask-slicer"))
            page.wait_for_timeout(4000)
            as_if_at_home(page, folder)
            page.screenshot(path=IMAGES / "run_page.png")
    finally:
        run.terminate()
        run.communicate()
    shrink(IMAGES / "dashboard.png")
    shrink(IMAGES / "run_page.png")


@contextmanager
def opened_page() -> Iterator[Any]:
    """Yield a page in a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield chromium.new_page(viewport=PAGE)
        chromium.close()


def as_if_at_home(page: Any, folder: Path) -> None:
    """Name, in a page, the folder and the machine as a reader's may be called."""
    page.evaluate(
        """names => {
            const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (texts.nextNode())
                for (const [from, to] of names)
                    texts.currentNode.data = texts.currentNode.data.replaceAll(from, to);
        }""",
        [[str(folder), "/home/me"], [f" on {socket.gethostname()}", " on node7"]],
    )


def wait_for_a_failure(journal: Path) -> None:
    """Wait until the case that fails has failed."""
    deadline = time.monotonic() + 120
    while not (journal.exists() and f'"{FAILING}"' in journal.read_text()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{FAILING} has not failed")
        time.sleep(0.2)


def shrink(path: Path) -> None:
    """Make a picture no wider than a page; not fewer colours, of which labels have one each."""
    from PIL import Image

    picture: Any = Image.open(path).convert("RGB")
    picture.thumbnail((PAGE["width"], PAGE["width"]))
    picture.save(path, optimize=True)


if __name__ == "__main__":
    main()
