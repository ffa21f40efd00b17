"""Arrays in mapped files."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from dask_slicer.errors import DiskFull, as_case_error
from dask_slicer.utils import mapped
from dask_slicer.utils.mapped import (
    empty_beside,
    map_file,
    mapping_of,
    reference,
    release,
    scratch_dir_of,
    scratch_file,
)

Array = NDArray[Any]
MB = 1 << 20
SHAPE = (6, 40, 50)

VIEWS: dict[str, Callable[[Array], Array]] = {
    "whole": lambda volume: volume,
    "transposed": lambda volume: volume.transpose(2, 0, 1),
    "flipped": lambda volume: volume[::-1, :, ::-1],
    "turned": lambda volume: volume[:, ::-1].transpose(1, 2, 0)[::-1],
    "cropped": lambda volume: volume[2:4, 5:, 1:-1],
    "stepped": lambda volume: volume[::2, ::-3],
    "plane": lambda volume: volume[3],
    "number": lambda volume: volume[3:4, 2:3, 1:2],
    "nothing": lambda volume: volume[3:3],
    "through a memoryview": lambda volume: np.asarray(memoryview(volume.data)),
    "in another byte order": lambda volume: volume.view(volume.dtype.newbyteorder()),
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return the path of a file with some bytes before a volume."""
    numbers = np.random.default_rng(3).integers(-900, 900, SHAPE).astype(np.int16)
    file = tmp_path / "volume.raw"
    file.write_bytes(b"header" + numbers.tobytes())
    return str(file)


def volume_of(data: NDArray[np.uint8]) -> Array:
    return np.frombuffer(data[6:], np.int16).reshape(SHAPE)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_leads_to_its_file(path: str, view: Callable[[Array], Array]) -> None:
    file = mapping_of(view(volume_of(map_file(path))))
    assert file is not None
    assert file.path == path


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_reference_opens_the_same_view(path: str, view: Callable[[Array], Array]) -> None:
    array = view(volume_of(map_file(path, scratch_dir="/scratch")))
    sent = pickle.dumps(reference(array))
    assert len(sent) < 1000
    opened = pickle.loads(sent).open()
    assert (opened.dtype, opened.shape, opened.strides) == (array.dtype, array.shape, array.strides)
    assert opened.tobytes() == array.tobytes()
    assert not opened.flags.writeable
    assert scratch_dir_of(opened) == "/scratch"


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_pages_that_are_given_back_are_read_again(
    path: str, view: Callable[[Array], Array]
) -> None:
    array = view(volume_of(map_file(path, scratch_dir="/scratch")))
    before = array.tobytes()
    release(array)
    assert array.tobytes() == before


@pytest.mark.parametrize(
    "array",
    [np.zeros(5), np.zeros((4, 5))[::-1].T, np.frombuffer(b"12345678"), np.array(3)],
    ids=["memory", "view", "bytes", "number"],
)
def test_an_array_in_memory_is_in_no_file(array: Array) -> None:
    assert mapping_of(array) is None
    assert reference(array) is None
    release(array)


def test_an_array_in_another_map_is_in_no_file_of_ours(path: str) -> None:
    with open(path, "rb") as file:
        array = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    assert mapping_of(array) is None
    assert mapping_of(np.memmap(path, mode="r")) is None


def test_an_input_cannot_be_written_to(path: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        map_file(path)[0] = 1


def test_an_empty_file_is_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert map_file(str(tmp_path / "empty")).shape == (0,)


def test_a_scratch_file_has_no_name(tmp_path: Path) -> None:
    scratch = scratch_file(3 * MB, str(tmp_path))
    assert not scratch.any()
    scratch[:] = 7
    assert list(tmp_path.iterdir()) == []
    assert reference(scratch) is None
    release(scratch)
    assert (scratch == 7).all()


def test_a_scratch_file_of_no_bytes_is_an_empty_array(tmp_path: Path) -> None:
    assert scratch_file(0, str(tmp_path)).shape == (0,)


def test_a_named_scratch_file_is_opened_by_other_processes(tmp_path: Path) -> None:
    volume = scratch_file(24, str(tmp_path), named=True).view(np.int16).reshape(3, 4)
    volume[...] = np.arange(12).reshape(3, 4)
    (file,) = tmp_path.iterdir()
    opened = reference(volume[::-1].T)
    assert opened is not None
    assert opened.path == str(file)
    program = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).open().tolist())"
    shown = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(opened), capture_output=True, check=True
    )
    assert shown.stdout.decode().strip() == str(volume[::-1].T.tolist())


def test_a_reference_to_a_file_that_was_cut_is_refused(path: str) -> None:
    kept = reference(volume_of(map_file(path)))
    assert kept is not None
    os.truncate(path, 100)
    with pytest.raises(ValueError, match="shorter"):
        kept.open()


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="no madvise")
@pytest.mark.parametrize(
    "turn", [lambda a: a, lambda a: a.transpose(2, 1, 0), lambda a: a[::-1, ::-1]]
)
def test_pages_that_are_given_back_are_no_memory_of_the_process(
    tmp_path: Path, turn: Callable[[Array], Array]
) -> None:
    process = psutil.Process()
    volume = scratch_file(64 * MB, str(tmp_path)).reshape(64, 1024, 1024)
    volume[...] = 1
    before = process.memory_info().rss
    release(turn(volume))
    assert before - process.memory_info().rss > 60 * MB
    assert (volume == 1).all()
    before = process.memory_info().rss
    release(turn(volume[:32]))
    assert 28 * MB < before - process.memory_info().rss < 36 * MB


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="no madvise")
def test_pages_of_a_file_that_memory_holds_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "volume.raw"
    file.write_bytes(bytes(64 * MB))
    kept, large = map_file(str(file)), map_file(str(file), scratch_dir=str(tmp_path))
    process = psutil.Process()
    assert kept.max() == large.max() == 0
    before = process.memory_info().rss
    release(kept)
    assert before - process.memory_info().rss < 4 * MB
    release(large)
    assert before - process.memory_info().rss > 60 * MB


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_that_is_forked_has_the_same_files(path: str, tmp_path: Path) -> None:
    volume = volume_of(map_file(path, scratch_dir="/scratch"))
    scratch = scratch_file(4, str(tmp_path))
    child = os.fork()
    if child == 0:
        release(volume)
        scratch[:] = np.frombuffer(volume[::-1].tobytes(), np.uint8)[:4]
        os._exit(reference(volume).open().tobytes() != volume.tobytes())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert scratch.tobytes() == volume[::-1].tobytes()[:4]


KILLED = """
import os, signal, sys
from dask_slicer.utils.mapped import scratch_file
scratch_file(1 << 20, sys.argv[1])[:] = 7
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_nothing_is_left_of_a_process_that_is_killed(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", [False, True])
def test_a_full_disk_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as caught:
        scratch_file(MB, str(tmp_path), named=named)
    error = as_case_error(caught.value, step="load")
    assert isinstance(error, DiskFull)
    assert str(tmp_path) in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exists", [True, False], ids=["not on this disk", "not on this system"])
def test_where_room_cannot_be_reserved_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(mapped, "_PIECE", 1000)
    if exists:
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    else:
        monkeypatch.delattr(os, "posix_fallocate")
    scratch = scratch_file(2500, str(tmp_path), named=True)
    (file,) = tmp_path.iterdir()
    assert scratch.shape == (2500,)
    assert file.stat().st_blocks * 512 >= 2500


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_an_array_is_in_a_file_if_the_one_it_is_made_of_is_too_large(
    path: str, tmp_path: Path, view: Callable[[Array], Array]
) -> None:
    large = view(volume_of(map_file(path, scratch_dir=str(tmp_path))))
    array = empty_beside(large, (3, 4), np.float32)
    assert (array.shape, array.dtype) == ((3, 4), np.float32)
    assert scratch_dir_of(array) == scratch_dir_of(large[::-1]) == str(tmp_path)
    assert scratch_dir_of(empty_beside(array, (5,), bool)) == str(tmp_path)
    array[...] = 2
    small = empty_beside(view(volume_of(map_file(path))), (3, 4), np.float32)
    assert (small.shape, small.dtype, scratch_dir_of(small)) == ((3, 4), np.float32, "")
    assert mapping_of(small) is None
