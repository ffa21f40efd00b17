"""Settings of this process that several runs change at once."""

from __future__ import annotations

import logging
import multiprocessing
import warnings

import pytest

from dask_slicer.cluster.process_settings import (
    IGNORED_WARNINGS,
    LOG_LEVELS,
    VARIABLES,
    SharedSettings,
    start_method_left_open,
)


@pytest.fixture
def settings() -> dict[str, object]:
    return {"a": 0, "b": 0}


@pytest.fixture
def shared(settings) -> SharedSettings:
    return SharedSettings(settings.get, settings.__setitem__)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_settings_are_as_before_when_the_last_of_several_blocks_ends(
    settings, shared, order
) -> None:
    blocks = [shared.changed(values) for values in ({"a": 1}, {"a": 2, "b": 1}, {"a": 1})]
    for block in blocks:
        block.__enter__()
    for n_ended, number in enumerate(order):
        assert settings["a"] in ((0,) if n_ended == 3 else (1, 2))
        blocks[number].__exit__(None, None, None)
    assert settings == {"a": 0, "b": 0}


def test_a_value_that_the_program_sets_during_a_block_is_kept(settings, shared) -> None:
    with shared.changed({"a": 1, "b": 1}):
        settings["a"] = 8
        assert (shared.before("a"), shared.before("b")) == (8, 0)
    assert settings == {"a": 8, "b": 0}


def test_a_value_that_the_program_sets_between_two_blocks_is_kept(settings, shared) -> None:
    first, second = shared.changed({"a": 1}), shared.changed({"a": 1})
    first.__enter__()
    settings["a"] = 8
    second.__enter__()
    first.__exit__(None, None, None)
    assert settings["a"] == 1
    second.__exit__(None, None, None)
    assert settings["a"] == 8


def test_a_block_that_fails_to_begin_changes_nothing(settings) -> None:
    def write(name: str, value: int) -> None:
        if name == "b":
            raise KeyError(name)
        settings[name] = value

    shared = SharedSettings(settings.get, write)
    with pytest.raises(KeyError), shared.changed({"a": 1, "b": 1}):
        pass
    assert settings == {"a": 0, "b": 0}


def test_each_kind_of_settings_is_restored(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    log = logging.getLogger("distributed.of_a_test")
    filters, method = list(warnings.filters), multiprocessing.get_start_method(allow_none=True)
    with (
        VARIABLES.changed({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
        LOG_LEVELS.changed({log.name: 50}),
        IGNORED_WARNINGS.changed({"Port .* in use": True}),
        start_method_left_open(),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.warn("port 1 in use", stacklevel=1)
        assert log.level == 50
        assert multiprocessing.get_start_method(allow_none=True)
    assert not caught
    assert VARIABLES.before("OMP_NUM_THREADS") is None
    assert (VARIABLES.before("MKL_NUM_THREADS"), log.level) == ("3", logging.NOTSET)
    assert warnings.filters == filters
    assert multiprocessing.get_start_method(allow_none=True) == method


@pytest.mark.parametrize("begins_first", [True, False], ids=["own first", "ours first"])
def test_filters_are_as_before_if_the_program_restores_its_own_in_between(begins_first) -> None:
    with warnings.catch_warnings():
        before = list(warnings.filters)
        blocks = [IGNORED_WARNINGS.changed({"Port .* in use": True}), warnings.catch_warnings()]
        first, second = reversed(blocks) if begins_first else blocks
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert warnings.filters == before
