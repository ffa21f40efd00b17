"""Links of dashboards, also where Dask cannot make them as the user's settings say."""

from __future__ import annotations

import dask
import distributed  # noqa: F401, adds its defaults, which must stay when settings end
import pytest

from dask_slicer.cluster.client import dashboard_link

LINK = "distributed.dashboard.link"


@pytest.mark.parametrize(
    "template", ["{NO_SUCH_VARIABLE}/proxy/{port}/status", "{host", "{0}", 5], ids=str
)
@pytest.mark.slow
def test_a_link_that_cannot_be_made_is_the_plain_one_and_stops_no_run(
    dataset, tmp_path, invoke, template
) -> None:
    dataset.add("ct")
    with dask.config.set({LINK: template}):
        result = invoke(
            *("run", "-i", dataset.root, "-o", tmp_path / "slices", "--num_workers", 1),
            *("--dashboard_address", "127.0.0.1:0"),
        )
    assert result.exit_code == 0
    assert "Dashboard: http://127.0.0.1:" in result.stdout
    assert "Wrote 10 slices" in result.stdout


class Client:
    """A client of a scheduler elsewhere, whose link is made by Dask when it is asked for."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    @property
    def dashboard_link(self) -> str | None:
        if self._error is not None:
            raise self._error
        template: str = dask.config.get(LINK)
        return template.format(scheme="http", host="node7", port=8787)


@pytest.mark.parametrize("error", [KeyError("dashboard"), OSError("lost"), AttributeError("x")])
def test_a_scheduler_without_a_dashboard_has_no_link(error) -> None:
    assert dashboard_link(Client(error)) == ""


def test_a_given_client_gets_the_link_of_the_settings_or_the_plain_one() -> None:
    with dask.config.set({LINK: "https://hub/{port}/status"}):
        assert dashboard_link(Client(None)) == "https://hub/8787/status"
    with dask.config.set({LINK: "https://hub/{NO_SUCH_VARIABLE}/status"}):
        assert dashboard_link(Client(None)) == "http://node7:8787/status"
