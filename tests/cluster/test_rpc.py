"""Questions to a scheduler: what is said of one that cannot answer."""

from __future__ import annotations

from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest

from dask_slicer.cluster import remote
from dask_slicer.cluster.rpc import ask_scheduler
from dask_slicer.errors import SchedulerError

UNKNOWN = TypeError("identity() got an unexpected keyword argument 'n_workers'")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UNKNOWN, "running", "cannot answer (TypeError: identity() got an unexpected keyword"),
        (KeyError("x"), "running", "check that it has the same version of distributed"),
        (OSError("closed"), "running", "was lost (OSError: closed)"),
        (CancelledError(), "running", "was lost"),
        (AttributeError("no comm"), "closed", "was lost (AttributeError: no comm)"),
        (TimeoutError(), "running", "has not answered for 10 s"),
    ],
)
def test_an_error_says_whether_the_scheduler_was_lost(error, status, words) -> None:
    def sync(*arguments: object, **options: object) -> None:
        raise error

    scheduler = SimpleNamespace(address="tcp://there:1")
    client = SimpleNamespace(scheduler=scheduler, status=status, sync=sync)
    with pytest.raises(SchedulerError) as caught:
        ask_scheduler(client, int)
    assert str(caught.value).startswith("the Dask scheduler at tcp://there:1 ")
    assert words in str(caught.value)
    assert ("lost" in str(caught.value)) == ("lost" in words)


def test_a_scheduler_of_an_older_version_is_not_called_unreachable(monkeypatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise UNKNOWN

    monkeypatch.setattr("distributed.Client", refuse)
    monkeypatch.setattr(remote, "check_reachable", lambda *arguments: None)
    connection = remote.connect("tcp://there:1", None)
    with pytest.raises(SchedulerError, match=r"there:1 cannot answer \(TypeError"):
        connection.__enter__()
