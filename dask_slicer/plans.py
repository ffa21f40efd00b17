"""What a run intends: which cases, into which splits, how large; integer arithmetic and no I/O."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from dask_slicer import cards
from dask_slicer.cases import Case
from dask_slicer.config import OF_ANOTHER_FORMAT, RunConfig, SliceSettings
from dask_slicer.journal import FailedCase
from dask_slicer.shares import share_of
from dask_slicer.words import count, size, times

# Raised when the same settings and sources would come out as other bytes.
FORMAT_VERSION = 1

# What a case costs beside its voxels, and each of its files, in bytes of voxels that are sliced in
# the same time: 1 ms and 0.25 ms, at 80 MB/s.
_WORK_PER_CASE, _WORK_PER_SLICE = 80_000, 20_000

# What a worker holds before its first case: Python, numpy, distributed.
WORKER_BASE_BYTES = 200_000_000
# Of one npz file: member names, zip headers and npy headers; the fixed part of the metadata, in
# characters of 4 bytes, and what each modality adds to it. Deflated, all of it takes about 1 kB.
_NPZ_HEADERS = 1_000
_METADATA_LENGTH, _METADATA_PER_MODALITY = 1_000, 120
_NPZ_OVERHEAD_DEFLATED = 1_000
# Deflating noise makes it this much longer at most.
_DEFLATE_EXPANSION = 1.01
# Normalised float32 slices deflate a little worse than the integers they come from, each plane of a
# window alike. Measured on CT and MR; an estimate, not a bound.
_FLOAT_OVER_GZIP = 1.5
_TYPICAL_GZIP_RATIO = 2.0
# In Zarr, where bytes are shuffled before they are compressed.
_SHUFFLED_OVER_GZIP = {"source": 1.2, "float16": 1.1}
# Of a case in a Zarr store: the group, and for each of image, label and slice_index its metadata
# and its shard; and what these take, shards aside.
_ZARR_FILES = 7
_ZARR_OVERHEAD = 6_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CasePlan:
    """What is known of a case from its headers, and where it goes.

    Attributes
    ----------
    case : Case
    split : str
    group : str
        The patient; the case id where nothing else is known.
    digest : str
        Of everything that decides the output.
    sources : tuple of str
        The images, relative to the input root, POSIX.
    shape : tuple of int
        (n_slices, height, width) in the order of the plane.
    spacing : tuple of float
        mm, likewise.
    orientation : str
        Axis codes of the first image as stored, such as LPS.
    dtypes : tuple of str
        Of the images as stored.
    file_bytes, voxel_bytes : int
        Of all files of the case, on disk and inflated.
    oriented : bool
        Whether the first image's header says how the patient lay.
    problem : FailedCase or None
        Why the case cannot be run; then the header's fields may be empty.
    """

    case: Case
    split: str = ""
    group: str = ""
    digest: str = ""
    sources: tuple[str, ...] = ()
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    orientation: str = ""
    dtypes: tuple[str, ...] = ()
    file_bytes: int = 0
    voxel_bytes: int = 0
    oriented: bool = True
    problem: FailedCase | None = None

    @property
    def case_id(self) -> str:
        """Return the id of the case."""
        return self.case.case_id

    def described(self) -> tuple[str, str, str, str, str]:
        """Return slices, rows×columns, spacing in mm, orientation and dtypes, as tables show it."""
        n_slices, height, width = self.shape
        return (
            str(n_slices),
            f"{height}×{width}",
            " × ".join(f"{step:.3g}" for step in self.spacing),
            self.orientation,
            "/".join(dict.fromkeys(self.dtypes)),
        )

    def _repr_html_(self) -> str:
        return cards.case_plan_card(self)

    @property
    def has_label(self) -> bool:
        """Return whether slices of this case will have a label."""
        return self.case.label is not None

    @property
    def work(self) -> int:
        """Return about how long it takes, in bytes of voxels."""
        return self.voxel_bytes + self.shape[0] * _WORK_PER_SLICE + _WORK_PER_CASE


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a run will do; made from headers, printable, and changed by nothing.

    Attributes
    ----------
    config : RunConfig
    layout : str
        The dataset layout that was recognised.
    reason : str
        By what it was recognised.
    cases : tuple of CasePlan
        All planned cases, also those with a problem, by case id.
    splits : dict of split to list of str
        What splits.json will hold: planned cases, and those it held before.
    notes : tuple of str
    problems : tuple of str
        Why the dataset as a whole is refused.
    """

    config: RunConfig
    layout: str
    reason: str
    cases: tuple[CasePlan, ...]
    splits: dict[str, list[str]]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        bad = f", {count(len(self.failures), 'case')} cannot be run" if self.failures else ""
        return (
            f"RunPlan({count(len(self.cases), 'case')}{bad}, {self.n_slices} "
            f"{self.config.plane} slices, to {str(self.config.output_dir)!r})"
        )

    @property
    def selected(self) -> tuple[CasePlan, ...]:
        """Return the cases to run, all or the ones chosen by `shard` and `only`."""
        wanted = {case.case_id for case in self.cases}
        if (share := share_of(self.config.shard)) is not None:
            wanted.intersection_update(share.cases(wanted))
        if self.config.only:
            wanted.intersection_update(self.config.only)
        return tuple(case for case in self.cases if case.case_id in wanted)

    @property
    def failures(self) -> tuple[FailedCase, ...]:
        """Return what is wrong with single cases, as far as headers tell."""
        return tuple(case.problem for case in self.cases if case.problem is not None)

    @property
    def n_modalities(self) -> int:
        """Return how many images a case has."""
        found = Counter(len(case.case.images) for case in self.cases if case.problem is None)
        found = found or Counter(len(case.case.images) for case in self.cases)
        return found.most_common(1)[0][0] if found else 1

    @property
    def n_slices(self) -> int:
        """Return how many slices all sound cases have."""
        return sum(case.shape[0] for case in self.cases if case.problem is None)

    @property
    def peak_bytes(self) -> int:
        """Return the memory that a worker needs for the largest case."""
        return WORKER_BASE_BYTES + max(
            (peak_bytes(case, self.config) for case in self.cases if case.problem is None),
            default=0,
        )

    def _repr_html_(self) -> str:
        return cards.plan_card(self)


def case_digest(
    settings: SliceSettings,
    *,
    split: str,
    sources: Sequence[tuple[str, int, int]],
    allow_missing_labels: bool,
    has_label: bool,
) -> str:
    """Return a digest of everything that decides the bytes of a case's output.

    Parameters
    ----------
    settings : SliceSettings
    split : str
    sources : sequence of (path, size, mtime_ns)
        Paths relative to the input root, so that a dataset may be moved.
    allow_missing_labels, has_label : bool
        A case without a label stands only as long as such cases are allowed.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    # A committed case remembers whether it held NaN; if not, `nonfinite` made no difference.
    meaningless = OF_ANOTHER_FORMAT[settings.format]
    decisive = settings.model_dump(mode="json", exclude={"nonfinite", meaningless})
    described = {
        "format_version": FORMAT_VERSION,
        "settings": decisive,
        "split": split,
        "sources": [list(source) for source in sources],
        "label": "present" if has_label else f"missing, allowed: {allow_missing_labels}",
    }
    text = json.dumps(described, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def peak_bytes(case: CasePlan, settings: SliceSettings) -> int:
    """Return the memory that one case takes while it is loaded, sliced and saved, in bytes."""
    _, height, width = case.shape
    voxels = int(np.prod(case.shape, dtype=object))
    planes = 2 * settings.window_size + 1 if settings.format == "npz" else 1
    label = voxels * np.dtype(settings.label_dtype).itemsize if case.has_label else 0
    # The planes of a window, raw and deflated; a percentile sorts a float64 copy of one modality.
    window = planes * len(case.case.images) * height * width * 4
    percentile = voxels * 8 if settings.normalize == "percentile" else 0
    return case.voxel_bytes + label + max(3 * window, percentile)


def output_bytes(case: CasePlan, settings: SliceSettings) -> tuple[int, int]:
    """Return how many bytes a case's slices take, at most and probably."""
    n_slices, height, width = case.shape
    n_modalities = len(case.case.images)
    pixels = height * width
    of_floats = settings.dtype != "source"
    image_dtype = np.dtype(settings.dtype) if of_floats else np.result_type(*case.dtypes)
    label = pixels * np.dtype(settings.label_dtype).itemsize if case.has_label else 0
    # Planes that a slice takes on disk: its window's, or its own.
    channels = n_modalities
    texts = _ZARR_OVERHEAD if n_slices == 0 else _ZARR_OVERHEAD // n_slices + 1
    stored_raw = settings.compression == "none"
    if settings.format == "npz":
        channels *= 2 * settings.window_size + 1
        n_characters = (
            _METADATA_LENGTH
            + len(case.case_id)
            + sum(_METADATA_PER_MODALITY + len(source) for source in case.sources)
        )
        texts = _NPZ_HEADERS + 4 * n_characters
        stored_raw = settings.compression_level == 0
    stored = n_slices * (channels * pixels * image_dtype.itemsize + label + texts)
    if stored_raw:
        return stored, stored
    most = int(stored * _DEFLATE_EXPANSION)
    ratio = case.voxel_bytes / case.file_bytes if case.file_bytes else _TYPICAL_GZIP_RATIO
    if ratio < 1.05:
        ratio = _TYPICAL_GZIP_RATIO  # not gzipped: nothing is known
    longer = _FLOAT_OVER_GZIP
    if settings.format == "zarr":
        longer = _SHUFFLED_OVER_GZIP.get(settings.dtype, longer)
    per_plane = case.voxel_bytes / max(n_slices, 1) / n_modalities / ratio * longer
    likely = n_slices * (per_plane * channels + min(texts, _NPZ_OVERHEAD_DEFLATED))
    return most, min(int(likely), most)


def output_files(case: CasePlan, settings: SliceSettings) -> int:
    """Return how many files a case becomes, at most."""
    if settings.format == "npz":
        return case.shape[0]
    return _ZARR_FILES if case.has_label else _ZARR_FILES - 2


def suggest_workers(
    *, n_cpus: int, memory_bytes: int, peak: int, n_cases: int, rotational: bool
) -> tuple[int, str]:
    """Return how many workers suit this machine and plan, and what limits them.

    Examples
    --------
    >>> suggest_workers(
    ...     n_cpus=16, memory_bytes=8 << 30, peak=3 << 30, n_cases=100, rotational=False
    ... )
    (2, 'memory: 8.6 GB holds 2 workers of 3.2 GB')
    """
    by_memory = max(memory_bytes // peak, 1)
    limits = [
        (n_cpus, f"CPU: this process may use {n_cpus}"),
        (by_memory, f"memory: {size(memory_bytes)} holds {by_memory} workers of {size(peak)}"),
        (max(n_cases, 1), f"there is only {count(n_cases, 'case')}"),
    ]
    if rotational:
        limits.append((2, "disk: a spinning disk slows down with more than 2 readers"))
    return min(limits, key=lambda limit: limit[0])


def outliers(cases: Iterable[CasePlan]) -> list[str]:
    """Return which cases are unlike the rest in spacing, shape, orientation or dtype.

    Where more than a quarter of the cases would be named, there is no rest to be unlike; then one
    line says that the property varies.
    """
    sound = [case for case in cases if case.problem is None]
    if len(sound) < 3:
        return []
    found: list[str] = []
    for name, triples in (
        ("spacing (mm)", [case.spacing for case in sound]),
        ("shape", [case.shape for case in sound]),
    ):
        middle = [median(triple[axis] for triple in triples) for axis in range(3)]
        odd = [
            f"{case.case_id}: {name} {times(triple)}, median {times(middle)}"
            for case, triple in zip(sound, triples, strict=True)
            if any(not m / 2 <= value <= m * 2 for value, m in zip(triple, middle, strict=True))
        ]
        low, high = ([edge(t[axis] for t in triples) for axis in range(3)] for edge in (min, max))
        found += _few_or_one(odd, len(sound), f"{name} varies from {times(low)} to {times(high)}")
    for name, values in (
        ("stored as", [case.orientation for case in sound]),
        ("dtype", ["/".join(case.dtypes) for case in sound]),
    ):
        counts = Counter(values).most_common()
        odd = [
            f"{case.case_id}: {name} {value}, most {counts[0][0]}"
            for case, value in zip(sound, values, strict=True)
            if value != counts[0][0]
        ]
        shown = ", ".join(f"{count} {value}" for value, count in counts)
        found += _few_or_one(odd, len(sound), f"{name}: {shown}")
    return found


def _few_or_one(odd: list[str], n_cases: int, instead: str) -> list[str]:
    return odd if len(odd) <= max(n_cases // 4, 1) else [instead]


def by_split(assignment: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the cases of each split, sorted, from the split of each case.

    Examples
    --------
    >>> by_split({"b": "train", "a": "train", "c": "test"})
    {'train': ['a', 'b'], 'val': [], 'test': ['c']}
    """
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for case_id, split in sorted(assignment.items()):
        splits[split].append(case_id)
    return splits
