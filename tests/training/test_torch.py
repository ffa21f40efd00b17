"""Batches as torch's tensors, from the loader and from workers of torch's DataLoader."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dask_slicer import SliceDataset, normalize_batch
from dask_slicer.errors import CorruptFile, UsageError
from dask_slicer.training.memory import shared_tensor

torch = pytest.importorskip("torch", reason="torch is not installed")

# Python warns of a fork beside threads; reading needs none of them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.timeout(120),
]
N_SLICES = 20  # of the two cases of conftest.py
METHODS = [
    "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn",
    *(
        # A process imports torch, which takes seconds.
        pytest.param(method, marks=pytest.mark.slow)
        for method in ("forkserver", "spawn")
        if method in multiprocessing.get_all_start_methods()
    ),
]


@pytest.fixture
def slices(store) -> SliceDataset:
    return SliceDataset(store("zarr as stored"))


def loader_of(slices: SliceDataset, **options: Any) -> Any:
    """Return torch's DataLoader of 2 forked workers, or as options say."""
    options = {"batch_size": 3, "num_workers": 2, "multiprocessing_context": METHODS[0]} | options
    return torch.utils.data.DataLoader(slices, **options)


def as_arrays(batch: dict[str, Any]) -> dict[str, Any]:
    return {n: value.numpy() if torch.is_tensor(value) else value for n, value in batch.items()}


def assert_is_epoch(batches: Iterable[dict[str, Any]], slices: SliceDataset) -> None:
    """Check that batches hold the samples of a dataset, each once, in any order."""
    seen = []
    for batch in batches:
        numbers = [
            10 * (case_id == "b") + int(slice_index)
            for case_id, slice_index in zip(batch["case_id"], batch["slice_index"], strict=True)
        ]
        seen += numbers
        samples = [slices[number] for number in numbers]
        assert batch.keys() == samples[0].keys()
        for name, value in as_arrays(batch).items():
            if isinstance(samples[0][name], np.ndarray):
                assert value.dtype == samples[0][name].dtype
            np.testing.assert_array_equal(value, [sample[name] for sample in samples])
    assert sorted(seen) == list(range(len(slices)))


class TestLoader:
    @pytest.mark.parametrize("output", ["float32", "source"])
    def test_batches_are_tensors(self, store, output):
        slices = SliceDataset(store("zarr as stored"), output=output)
        batches = list(slices.loader(3, shuffle=True))
        assert all(torch.is_tensor(batch["image"]) for batch in batches)
        assert all(torch.is_tensor(batch["slice_index"]) for batch in batches)
        assert_is_epoch(batches, slices)

    def test_batches_of_integers_are_normalised_to_those_of_floats(self, store):
        path = store("zarr as stored", padding_mode="zero")
        stored = SliceDataset(path, output="source").loader(3)
        for batch, floats in zip(stored, SliceDataset(path).loader(3), strict=True):
            result = normalize_batch(batch)
            assert result.keys() == floats.keys()
            torch.testing.assert_close(result["image"], floats["image"], rtol=1e-6, atol=1e-6)

    def test_tensors_that_are_kept_stay_as_they_are(self, slices):
        loader = slices.loader(3, threads=3)
        for batches in [list(loader) for _ in range(3)]:
            assert_is_epoch(batches, slices)

    @pytest.mark.parametrize(
        "part",
        [
            lambda image: image[0],
            lambda image: image[:, 1:, ::2].transpose(-1, -2)[-1:],
            lambda image: image.numpy()[1],
            lambda image: torch.utils.dlpack.from_dlpack(image[:1]),
            lambda image: image[0, 2].detach().requires_grad_(),
        ],
        ids=range(5),
    )
    def test_a_part_that_is_kept_alone_keeps_the_memory_of_its_batch(self, slices, part):
        loader = slices.loader(2, threads=2)
        for _ in range(2):
            kept = [part(batch["image"]) for batch in loader]
            copies = [part(batch["image"].clone()) for batch in loader]
            for tensor, copy in zip(kept, copies, strict=True):
                assert np.array_equal(tensor.tolist(), copy.tolist())

    def test_what_autograd_keeps_is_not_overwritten(self, slices):
        weight = torch.ones(1, requires_grad=True)
        loss, expected = torch.zeros(1), 0.0
        for batch in slices.loader(2):
            loss = loss + (weight * batch["image"]).pow(2).sum()
            expected += 2 * float(batch["image"].double().pow(2).sum())
        loss.backward()
        assert float(weight.grad) == pytest.approx(expected, rel=1e-4)

    def test_many_epochs_take_no_more_memory_than_a_few_batches(self, slices):
        loader = slices.loader(4, threads=2)
        addresses = {batch["image"].data_ptr() for _ in range(20) for batch in loader}
        assert len(addresses) <= 7

    def test_a_sampler_of_torch_decides_the_order(self, slices):
        weights = np.zeros(N_SLICES)
        weights[[4, 15]] = 0.5
        sampler = torch.utils.data.WeightedRandomSampler(weights, 30, replacement=True)
        loader = slices.loader(8, sampler=sampler)
        batches = list(loader)
        assert len(loader) == len(batches) == 4
        drawn = {int(number) for batch in batches for number in batch["slice_index"]}
        assert drawn == {4, 5}

    def test_the_processes_of_a_distributed_training_share_an_epoch(self, slices, monkeypatch):
        loader = slices.loader(7, shuffle=True)  # made before the processes know each other
        names = {"is_initialized": True, "get_world_size": 3}
        drawn = []
        for rank in range(3):
            for name, value in (names | {"get_rank": rank}).items():
                monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
            loader.set_epoch(0)
            assert len(loader) == 1
            (batch,) = loader
            drawn.append({*zip(batch["case_id"], batch["slice_index"].tolist(), strict=True)})
        assert [len(each) for each in drawn] == [7, 7, 7]
        assert len(set.union(*drawn)) == N_SLICES

    @pytest.mark.filterwarnings("default")  # Lightning's own
    def test_lightning_takes_the_loader(self, slices, tmp_path):
        lightning = pytest.importorskip("lightning", reason="lightning is not installed")

        class Model(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Conv2d(5, 1, 1)
                self.drawn: list[tuple[str, int]] = []

            def training_step(self, batch: dict[str, Any], _: int) -> Any:
                self.drawn += zip(batch["case_id"], batch["slice_index"].tolist(), strict=True)
                return self.layer(batch["image"]).mean()

            def validation_step(self, batch: dict[str, Any], _: int) -> None:
                self.log("loss", self.layer(batch["image"]).mean(), batch_size=len(batch["image"]))

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), 0.1)

        model = Model()
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, slices.loader(4, shuffle=True), slices.loader(4, sampler=range(6)))
        epochs = model.drawn[:N_SLICES], model.drawn[N_SLICES:]
        in_order = [(sample["case_id"], sample["slice_index"]) for sample in slices]
        assert sorted(epochs[0]) == sorted(epochs[1]) == in_order
        assert epochs[0] != epochs[1]

    def test_pinned_memory_needs_a_gpu(self, slices):
        if torch.cuda.is_available():
            batch = next(iter(slices.loader(2, pin_memory=True)))
            assert batch["image"].is_pinned()
            return
        with pytest.raises(UsageError, match="pin_memory needs torch and a GPU"):
            slices.loader(2, pin_memory=True)

    def test_a_transform_may_return_tensors_and_tuples(self, slices):
        slices.transform = lambda s: (torch.from_numpy(s["image"]), s["label"], s["case_id"])
        image, label, case_id = next(iter(slices.loader(4)))
        samples = [slices[number] for number in range(4)]
        assert torch.equal(image, torch.stack([sample[0] for sample in samples]))
        np.testing.assert_array_equal(label.numpy(), [sample[1] for sample in samples])
        assert list(case_id) == ["a"] * 4


class TestCollate:
    def test_default_collation_makes_the_same_batch(self, slices):
        samples = slices.__getitems__([3, 14, 3])
        ours, torchs = slices.collate(samples), torch.utils.data.default_collate(samples)
        assert list(ours) == list(torchs)
        for name, value in torchs.items():
            if torch.is_tensor(value):
                torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
            else:
                assert ours[name] == value

    def test_batches_of_this_process_that_are_kept_stay_as_they_are(self, slices):
        options = {"num_workers": 0, "multiprocessing_context": None}
        kept = list(loader_of(slices, collate_fn=slices.collate, **options))
        assert_is_epoch(list(loader_of(slices, collate_fn=slices.collate, **options)), slices)
        assert_is_epoch(kept, slices)

    def test_a_batch_becomes_tensors_on_its_own_memory(self, slices):
        samples = slices.__getitems__([3, 14, 3])
        batch = slices.collate(samples)
        for name in ("image", "label"):
            assert batch[name].data_ptr() == samples[0][name].ctypes.data

    @pytest.mark.parametrize("dtype", ["f4", "u1", "i2", "<u2", "i4"])
    @pytest.mark.parametrize("strategy", sorted(torch.multiprocessing.get_all_sharing_strategies()))
    def test_a_tensor_in_memory_that_processes_share_holds_the_array(self, dtype, strategy):
        before = torch.multiprocessing.get_sharing_strategy()
        torch.multiprocessing.set_sharing_strategy(strategy)
        try:
            array = np.arange(24).reshape(4, 2, 3).astype(dtype)[::-1]
            tensor = shared_tensor(array)
        finally:
            torch.multiprocessing.set_sharing_strategy(before)
        assert tensor.is_shared()
        np.testing.assert_array_equal(tensor.numpy(), array)

    def test_torch_still_makes_shared_memory_with_a_descriptor(self):
        # Private names of torch's; without them, `shared_tensor` gives memory that torch copies.
        storage = torch.UntypedStorage._new_shared(64)
        assert storage.is_shared()
        descriptor, n_bytes = storage._share_fd_cpu_()
        assert (os.fstat(descriptor).st_size, n_bytes) == (64, 64)

    @pytest.mark.parametrize("name", ["_new_shared", "_share_fd_cpu_"])
    def test_an_array_is_copied_without_the_private_names(self, monkeypatch, name):
        class Missing:
            def __get__(self, *_: object) -> None:
                raise AttributeError(name)

        monkeypatch.setattr(torch.UntypedStorage, name, Missing(), raising=False)
        array = np.arange(12, dtype=np.float32)
        tensor = shared_tensor(array)
        array[:] = 0
        assert tensor.tolist() == list(range(12))


def n_open() -> int:
    """Return the number of files and of pieces of shared memory that this process has open."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return len(os.listdir("/proc/self/fd")) + maps.count("/dev/shm")


class Noting:
    """A transform that notes the process, and how much it has open, in a sample."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return sample | {"pid": os.getpid(), "open": n_open()}


class Killed:
    """A transform that kills the process at a slice."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        if (sample["case_id"], sample["slice_index"]) == ("b", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return sample


@pytest.mark.parametrize("method", METHODS)
class TestWorkers:
    @pytest.mark.parametrize("output", ["float32", "source"])
    @pytest.mark.parametrize("is_ours", [False, True], ids=["default collation", "our collation"])
    def test_every_epoch_has_the_samples_of_the_dataset(self, store, method, output, is_ours):
        slices = SliceDataset(store("zarr as stored"), output=output)
        loader = loader_of(
            slices,
            multiprocessing_context=method,
            shuffle=True,
            persistent_workers=True,
            collate_fn=slices.collate if is_ours else None,
        )
        for _ in range(3):
            assert_is_epoch(loader, slices)
        kept = list(loader)
        assert_is_epoch(loader, slices)
        assert_is_epoch(kept, slices)

    @pytest.mark.parametrize("name", ["npz", "png"])
    def test_files_are_read_by_workers_too(self, store, method, name):
        slices = SliceDataset(store(name))
        loader = loader_of(slices, multiprocessing_context=method, collate_fn=slices.collate)
        assert_is_epoch(loader, slices)

    def test_a_damaged_file_is_named_in_the_main_process(self, store, tmp_path, method):
        path = shutil.copytree(store("npz"), tmp_path / "damaged")
        files = sorted(path.rglob("a_*.npz"))
        files[7].write_bytes(files[7].read_bytes()[:40])
        batches = iter(loader_of(SliceDataset(path), multiprocessing_context=method))
        assert [len(next(batches)["case_id"]) for _ in range(2)] == [3, 3]
        with pytest.raises(CorruptFile, match=r"case a, slice 7: .*a_.*npz.*--repair"):
            next(batches)
        assert sum(len(batch["case_id"]) for batch in batches) == N_SLICES - 9

    @pytest.mark.slow  # torch waits for the other worker
    def test_a_worker_that_is_killed_is_reported(self, store, method):
        slices = SliceDataset(store("zarr"), transform=Killed())
        with pytest.raises(RuntimeError, match=r"worker \(pid.*\)"):
            list(loader_of(slices, multiprocessing_context=method, collate_fn=slices.collate))

    def test_a_loader_that_was_iterated_before_breaks_no_worker(self, slices, method):
        batches = iter(slices.loader(2, threads=2))
        first = next(batches)
        loader = loader_of(slices, multiprocessing_context=method, collate_fn=slices.collate)
        for _ in range(2):
            assert_is_epoch(loader, slices)
        assert_is_epoch([first, *batches], slices)


class TestSharedMemory:
    def test_what_workers_hand_on_is_in_shared_memory(self, slices):
        def collate(samples: list[Any]) -> dict[str, Any]:
            batch = slices.collate(samples)
            return batch | {"is_shared": all(batch[key].is_shared() for key in ("image", "label"))}

        assert all(batch["is_shared"] for batch in loader_of(slices, collate_fn=collate))

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
    def test_many_epochs_leave_nothing_open(self, store):
        slices = SliceDataset(store("zarr"), transform=Noting())
        loader = loader_of(slices, collate_fn=slices.collate, persistent_workers=True)
        counts, pids = [], set()
        for _ in range(6):
            batches = list(loader)
            pids |= {int(pid) for batch in batches for pid in batch["pid"]}
            in_workers = max(int(batch["open"].max()) for batch in batches)
            del batches
            counts.append((in_workers, n_open()))
        assert len(pids) == 2
        for in_process in zip(*counts, strict=True):
            assert max(in_process[3:]) <= max(in_process[:3]) + 4
