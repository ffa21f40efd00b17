"""Memory of batches: shared with other processes, page-locked, or in one piece."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def is_in_worker() -> bool:
    """Return whether this is a worker process of torch's DataLoader."""
    torch_data = sys.modules.get("torch.utils.data")
    return torch_data is not None and torch_data.get_worker_info() is not None


def shared_tensor(array: NDArray[Any]) -> Any:
    """Return a tensor with a copy of an array in memory that processes share.

    For workers of torch's DataLoader: it goes to the main process without a copy. New shared memory
    is slow to fill, because the system clears each page first; writing to it as a file is faster.
    """
    import torch

    try:
        storage = torch.UntypedStorage._new_shared(array.nbytes)
        descriptor = None
        if torch.multiprocessing.get_sharing_strategy() == "file_descriptor":
            descriptor, _ = storage._share_fd_cpu_()  # which is the storage's, and stays open
    except AttributeError:  # of torch's private names; torch copies the tensor when it is handed on
        return torch.from_numpy(array.copy())
    tensor = torch.from_numpy(np.empty(0, array.dtype)).set_(storage, 0, array.shape)
    if descriptor is None:
        tensor.numpy()[...] = array
        return tensor
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], written)
    return tensor


def can_pin() -> bool:
    """Return whether torch is installed, and finds a GPU for which memory can be page-locked."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def pinned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array in page-locked memory of torch's; its base is the tensor.

    Torch does not give this memory to others before copies to a device have ended, which our pool
    could not know.
    """
    import torch

    like = torch.from_numpy(np.empty(0, dtype))
    array: NDArray[Any] = torch.empty(shape, dtype=like.dtype, pin_memory=True).numpy()
    return array


def joined(arrays: list[NDArray[Any]]) -> NDArray[Any] | None:
    """Return the array of a batch whose parts these are, all of them in order; else None.

    Arrays that the user made are never taken for a batch: they own their memory.

    >>> from dask_slicer.utils.array_pool import ArrayPool
    >>> batch = ArrayPool(1).empty((2, 3), "f4")
    >>> joined([*batch]).shape, joined([batch[1], batch[0]]), joined([*batch[:1]])
    ((2, 3), None, None)
    """
    first, root = arrays[0], arrays[0].base
    if not isinstance(root, np.ndarray) or root.base is None:
        return None
    if root.nbytes != len(arrays) * first.nbytes or not root.flags.c_contiguous:
        return None
    for number, array in enumerate(arrays):
        same = (array.base is root, array.shape == first.shape, array.dtype == first.dtype)
        start = root.ctypes.data + number * first.nbytes
        if not all(same) or not array.flags.c_contiguous or array.ctypes.data != start:
            return None
    return root.reshape(-1).view(first.dtype).reshape(len(arrays), *first.shape)


def as_tensor(array: NDArray[Any]) -> Any:
    """Return a tensor on the same memory; that of `pinned_empty`, if it is one."""
    import torch

    tensor: Any = array
    while isinstance(tensor, np.ndarray):
        tensor = tensor.base
    if isinstance(tensor, torch.Tensor) and tuple(tensor.shape) == array.shape:
        same = tensor.data_ptr() == array.ctypes.data
        if same and tensor.dtype == torch.from_numpy(array[:0]).dtype:
            return tensor
    return torch.from_numpy(array)
