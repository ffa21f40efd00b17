"""Compare what two versions of the package write: every slice, every Zarr file, index and splits.

    python benchmarks/same_bytes.py OLD.whl NEW.whl --work /tmp/same_bytes
    python benchmarks/same_bytes.py OLD.whl NEW.whl --work /tmp/same_bytes --scans FOLDER

Each wheel gets an environment of its own, which sees the packages of this one, so that only the
package differs. Both slice the dataset of `dask-slicer demo`, and, with --scans, every folder of
FOLDER that holds image.nii.gz and label.nii.gz. The exit status is 1 if any byte differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

# Options of the runs that are compared, by name.
RUNS: dict[str, tuple[str, ...]] = {
    "npz": ("--format", "npz"),
    "npz coronal, raw": ("--plane", "coronal", "--no_normalize", "--compression_level", "0"),
    "npz sagittal, mirror": ("--plane", "sagittal", "--padding_mode", "mirror"),
    "npz along i, minmax": ("--plane", "i", "--normalize", "minmax", "--padding_mode", "zero"),
    "zarr": ("--format", "zarr"),
    "zarr, source": ("--format", "zarr", "--dtype", "source", "--clip_min", "-160"),
}


def install(wheel: Path, folder: Path) -> Path:
    """Return the `dask-slicer` of an environment that holds a wheel."""
    if not folder.exists():
        venv.create(folder, with_pip=True)
        python = folder / "bin" / "python"
        site = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        Path(site, "packages_of_this_environment.pth").write_text(sysconfig.get_path("purelib"))
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel],
            check=True,
        )
    return folder / "bin" / "dask-slicer"


def contents(output: Path) -> dict[str, bytes]:
    """Return the files that must be equal, by their path in the output."""
    paths = [*output.rglob("*.npz"), output / "slices.csv", output / "splits.json"]
    paths += [path for path in (output / "slices.zarr").rglob("*") if path.is_file()]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


def manifest(scans: Path, work: Path) -> Path:
    """Write a manifest of folders with image.nii.gz and label.nii.gz, and return it."""
    rows = ["case_id,image,label"]
    rows += [
        f"{folder.name},{folder / 'image.nii.gz'},{folder / 'label.nii.gz'}"
        for folder in sorted(scans.iterdir())
        if (folder / "image.nii.gz").exists() and (folder / "label.nii.gz").exists()
    ]
    path = work / "manifest.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def main() -> int:
    """Compare two wheels; print a line for each run, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scans", type=Path)
    chosen = parser.parse_args()
    work, old, new = (path.resolve() for path in (chosen.work, chosen.old, chosen.new))
    scans = None if chosen.scans is None else chosen.scans.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)  # Python would look for the package here first
    commands = {
        "old": install(old, work / "old"),
        "new": install(new, work / "new"),
    }
    subprocess.run([commands["old"], "demo", "--output_dir", work / "demo", "--quiet"], check=True)
    datasets = {"demo": work / "demo" / "phantoms"}
    if scans is not None:
        datasets["scans"] = manifest(scans, work)
    n_different = 0
    for dataset, input_dir in datasets.items():
        for number, (name, options) in enumerate(RUNS.items()):
            written = {}
            for version, command in commands.items():
                output = work / f"{dataset}_{number}_{version}"
                subprocess.run(
                    [command, "run", "--input_dir", input_dir, "--output_dir", output,
                     "--num_workers", "0", "--label_dtype", "uint16", "--quiet", *options],
                    check=False,  # a case may fail, in both
                )  # fmt: skip
                written[version] = contents(output)
            before, after = written["old"], written["new"]
            different = [p for p in sorted(before | after) if before.get(p) != after.get(p)]
            n_different += len(different)
            n_bytes = sum(map(len, after.values()))
            print(
                f"{dataset}, {name}: {len(after)} files, {n_bytes:,} bytes, "
                f"{len(different)} different {different[:3] if different else ''}".rstrip()
            )
            if not before:
                print(f"{dataset}, {name}: nothing was written")
                n_different += 1
    return 1 if n_different else 0


if __name__ == "__main__":
    sys.exit(main())
