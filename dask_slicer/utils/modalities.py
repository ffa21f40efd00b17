"""Settings that hold one value for all modalities, or a tuple with one for each."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def for_each_modality(value: T | tuple[T, ...], n: int) -> tuple[T, ...]:
    """Return the value for each of n modalities; a tuple of another length stays as it is.

    >>> for_each_modality("zscore", 2), for_each_modality((240.0, None), 2)
    (('zscore', 'zscore'), (240.0, None))
    """
    return value if isinstance(value, tuple) else (value,) * n
