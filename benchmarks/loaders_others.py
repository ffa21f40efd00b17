"""Loading the same windows with other packages, as their users would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from loading import (
    BATCH_SIZE,
    N_WORKERS,
    NEIGHBOURS,
    PLANES,
    Batch,
    Batches,
    Method,
    Scans,
    files_of,
    in_workers,
)

_WORKERS = f"{N_WORKERS} workers"
_DEFAULT = "torch's DataLoader and its default collation"


def numpy_files(scans: Scans, folder: Path) -> Iterator[Method]:
    """Yield what reads a file for each window with NumPy, in workers."""
    yield Method(
        name="`.npy` of each window",
        group="other",
        values="float32",
        processes=_WORKERS,
        how=f"`np.load` of a normalised float32 window and of its label, {_DEFAULT}",
        load=in_workers(_Npy(folder)),
        files=files_of(folder),
        pool_only=True,
    )
    paths = sorted(scans.npz.rglob("*.npz"))
    yield Method(
        name="`.npz` of each window",
        group="other",
        values="float32",
        processes=_WORKERS,
        how=f"`np.load` of the files of `--format npz`, {_DEFAULT}",
        load=in_workers(_Npz(paths)),
        files=paths,
    )


def write_npy(scans: Scans, folder: Path) -> None:
    """Write windows and labels, an `.npy` file each; of those windows that are drawn from."""
    folder.mkdir()
    for case, (image, label) in enumerate(scans.planes(stored=False)):
        for number in scans.pool[scans.case[scans.pool] == case].tolist():
            _, window, middle = scans.place(number)
            np.save(folder / f"image_{number}.npy", image[window])
            np.save(folder / f"label_{number}.npy", label[middle])


class _Npy:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {kind: np.load(self.folder / f"{kind}_{number}.npy") for kind in ("image", "label")}


class _Npz:
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __getitem__(self, number: int) -> dict[str, Any]:
        with np.load(self.paths[number]) as members:
            return {"image": members["image"], "label": members["label"]}


def nnunet(scans: Scans, folder: Path) -> Iterator[Method]:
    """Yield what reads nnU-Net's Blosc2 files with its own class."""
    batches = _NnUnetBatches(scans, folder)

    def load(wanted: Batches) -> Iterator[Batch]:
        for numbers in wanted:
            yield batches.__getitems__(numbers)

    common: dict[str, Any] = {
        "name": "nnU-Net, Blosc2",
        "group": "other",
        "values": "float32",
        "files": files_of(folder),
    }
    how = (
        "files of `nnUNetDatasetBlosc2.save_case`, with blocks and chunks that nnU-Net's "
        "preprocessor computes for a 2D patch of a whole slice. For each window, as in "
        "`nnUNetDataLoader.generate_train_batch`: `load_case`, `crop_and_pad_nd` of five slices of "
        "the image and one of the label, `.float()`, and a copy into the tensor of the batch"
    )
    yield Method(
        **common, processes=_WORKERS, load=in_workers(batches, _same),
        how=f"{how}; a batch at a time in workers of torch's DataLoader",
    )  # fmt: skip
    yield Method(**common, processes="1 process", load=load, how=how)


def write_nnunet(scans: Scans, folder: Path) -> None:
    """Write cases as the preprocessor of nnU-Net v2 does for its 2D configuration."""
    from nnunetv2.training.dataloading.nnunet_dataset import (
        comp_blosc2_params,
        nnUNetDatasetBlosc2,
    )

    folder.mkdir()
    for number, (planes, labels) in enumerate(scans.planes(stored=False)):
        image = np.ascontiguousarray(planes[None], np.float32)
        label = np.ascontiguousarray(labels[None], np.int16)
        blocks, chunks = comp_blosc2_params(image.shape, image.shape[2:], image.itemsize)
        of_label = comp_blosc2_params(label.shape, label.shape[2:], label.itemsize)
        nnUNetDatasetBlosc2.save_case(
            image, label, {}, str(folder / f"case_{number:03d}"), chunks=chunks, blocks=blocks,
            chunks_seg=of_label[1], blocks_seg=of_label[0],
        )  # fmt: skip


class _NnUnetBatches:
    def __init__(self, scans: Scans, folder: Path) -> None:
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

        self.scans = scans
        self.cases = nnUNetDatasetBlosc2(str(folder))

    def __getitems__(self, numbers: list[int]) -> Batch:
        import torch
        from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

        size = self.scans.shape[1:]
        images = torch.empty((len(numbers), 1, PLANES, *size), dtype=torch.float32)
        labels = torch.empty((len(numbers), 1, 1, *size), dtype=torch.int16)
        whole = [[0, length] for length in size]
        for row, number in enumerate(numbers):
            case, window, middle = self.scans.place(number)
            data, seg, _, _ = self.cases.load_case(self.cases.identifiers[case])
            box = [[window.start, window.stop], *whole]
            images[row] = torch.from_numpy(crop_and_pad_nd(data, box, 0)).float()
            box = [[middle, middle + 1], *whole]
            cropped = crop_and_pad_nd(seg, box, -1, cast_cropped_to=np.int16)
            labels[row] = torch.from_numpy(cropped).to(torch.int16)
        return {"image": images[:, 0], "label": labels[:, 0, 0]}


def monai(scans: Scans, folder: Path) -> Iterator[Method]:
    """Yield what takes windows from MONAI's caches, in memory and on disk, in workers."""
    from monai.data import CacheDataset, DataLoader

    volumes = CacheDataset(
        [{"image": str(image), "label": str(label)} for image, label in scans.volumes],
        _monai_transform(),
        progress=False,
        num_workers=N_WORKERS,
    )
    yield Method(
        name="MONAI, `CacheDataset`",
        group="other",
        values="float32",
        processes=_WORKERS,
        how=(
            "whole volumes in memory after `LoadImaged`, `EnsureChannelFirstd`, `Orientationd` and "
            "`NormalizeIntensityd`; a window is five slices of one, slices first, and MONAI's "
            "DataLoader collates them"
        ),
        load=in_workers(_MonaiWindows(scans, volumes), loader=DataLoader),
    )
    yield Method(
        name="MONAI, `PersistentDataset`",
        group="other",
        values="float32",
        processes=_WORKERS,
        how=(
            "the same windows, each in a file of its own: as whole volumes, each of which is read "
            "for a window, it would be far slower"
        ),
        load=in_workers(_persistent(scans, folder), loader=DataLoader),
        files=files_of(folder),
        pool_only=True,
    )


def write_monai(scans: Scans, folder: Path) -> None:
    """Fill the cache of a `PersistentDataset`; with those windows that are drawn from."""
    windows = _persistent(scans, folder)
    for number in sorted(scans.pool.tolist()):
        windows[number]


def _monai_transform() -> Any:
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        NormalizeIntensityd,
        Orientationd,
    )

    keys = ("image", "label")
    oriented = Orientationd(keys, axcodes="LPS", labels=None)
    steps = [LoadImaged(keys), EnsureChannelFirstd(keys), oriented, NormalizeIntensityd("image")]
    return Compose(steps)


def _window_of(volume: Any, window: slice, middle: int) -> dict[str, Any]:
    """Return a window of a volume (channel, column, row, slice), as (slice, row, column)."""
    return {
        "image": volume["image"][0, :, :, window].permute(2, 1, 0),
        "label": volume["label"][0, :, :, middle].permute(1, 0),
    }


class _MonaiWindows:
    def __init__(self, scans: Scans, volumes: Any) -> None:
        self.scans, self.volumes = scans, volumes

    def __len__(self) -> int:
        return len(self.scans.case)

    def __getitem__(self, number: int) -> dict[str, Any]:
        case, window, middle = self.scans.place(number)
        return _window_of(self.volumes[case], window, middle)


def _persistent(scans: Scans, folder: Path) -> Any:
    from monai.data import PersistentDataset
    from monai.transforms import Compose, Transform

    load = lru_cache(maxsize=1)(_load_volume)

    class TakeWindow(Transform):
        """Only what is a `Transform` is applied before the cache is filled."""

        def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
            volume, middle = load(item["image"], item["label"]), item["middle"]
            window = slice(middle - NEIGHBOURS, middle + NEIGHBOURS + 1)
            tensors = _window_of(volume, window, middle)
            return {name: tensor.contiguous() for name, tensor in tensors.items()}

    items = []
    for number in range(len(scans.case)):
        case, _, middle = scans.place(number)
        image, label = map(str, scans.volumes[case])
        items.append({"image": image, "label": label, "middle": middle})
    return PersistentDataset(items, Compose([TakeWindow()]), cache_dir=folder)


def _load_volume(image: str, label: str) -> Any:
    return _monai_transform()({"image": image, "label": label})


def torchio(scans: Scans, n_windows: int) -> Iterator[Method]:
    """Yield what draws patches with TorchIO's queue, which reads each volume once an epoch."""
    import torch
    import torchio as tio

    n_each = max(n_windows // len(scans.volumes), 1)
    subjects = [
        tio.Subject(image=tio.ScalarImage(image), label=tio.LabelMap(label))
        for image, label in scans.volumes
    ]
    _, rows, columns = scans.shape
    sampler = tio.data.UniformSampler((columns, rows, PLANES))

    turns = count()

    def load(batches: Batches) -> Iterable[Batch]:
        # A volume for each worker: all of them would take longer than all other methods together.
        first = next(turns) * N_WORKERS
        of_turn = {number % len(subjects) for number in range(first, first + N_WORKERS)}
        dataset = tio.SubjectsDataset(
            [subjects[number] for number in of_turn], transform=tio.ZNormalization()
        )
        queue = tio.Queue(
            dataset, n_windows, n_each, sampler, num_workers=N_WORKERS, start_background=False
        )
        for batch in tio.SubjectsLoader(queue, batch_size=BATCH_SIZE, num_workers=0):
            yield {
                "image": batch["image"][tio.DATA][:, 0].permute(0, 3, 2, 1),
                "label": batch["label"][tio.DATA][:, 0, :, :, NEIGHBOURS].permute(0, 2, 1),
            }

    yield Method(
        name="TorchIO, `Queue`",
        group="other",
        values="float32",
        processes=_WORKERS,
        how=(
            f"`SubjectsDataset` with `ZNormalization`, `UniformSampler` of five slices, {n_each} "
            "of each volume, which is read from `.nii.gz` once an epoch; two volumes a turn"
        ),
        load=load,
        files=[path for volume in scans.volumes for path in volume],
        drawn=False,
    )
    torch.manual_seed(0)


def versions() -> dict[str, str]:
    """Return the versions of packages that are measured."""
    installed = {}
    for name in ("numpy", "zarr", "numcodecs", "torch", "monai", "torchio", "nnunetv2", "blosc2"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def _same(batch: Batch) -> Batch:
    return batch
