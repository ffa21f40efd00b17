"""How the dashboard is seen from elsewhere, of its link and the environment of the command."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dask_slicer.monitoring.links import link_hints
from dask_slicer.monitoring.terminal import RunDisplay

HERE = "http://127.0.0.1:8787/status"
SSH = {"SSH_CONNECTION": "198.51.100.7 50022 10.0.0.5 22", "USER": "me"}
HUB = {"JUPYTERHUB_SERVICE_PREFIX": "/user/me/lab-1/"}
JOB = {"SLURM_JOB_ID": "4711"}


def tunnel(command: str, port: int = 8787) -> list[str]:
    return [
        f"From your own computer: {command}",
        f"then open there: http://127.0.0.1:{port}/status",
    ]


@pytest.mark.parametrize(
    ("link", "environment", "expected"),
    [
        pytest.param(HERE, {"USER": "me"}, [], id="at_the_machine"),
        pytest.param(HERE, SSH, tunnel("ssh -N -L 8787:127.0.0.1:8787 me@10.0.0.5"), id="ssh"),
        pytest.param(
            "http://127.0.0.1:34567/status",
            SSH,
            tunnel("ssh -N -L 34567:127.0.0.1:34567 me@10.0.0.5", 34567),
            id="a_free_port",
        ),
        pytest.param(
            HERE,
            SSH | {"SSH_CONNECTION": "198.51.100.7 50022 10.0.0.5 2222"},
            tunnel("ssh -N -L 8787:127.0.0.1:8787 -p 2222 me@10.0.0.5"),
            id="ssh_on_another_port",
        ),
        pytest.param(
            HERE,
            {"SSH_CONNECTION": "fe80::1 50022 2001:db8::5 22", "LOGNAME": "you"},
            tunnel("ssh -N -L 8787:127.0.0.1:8787 you@2001:db8::5"),
            id="ipv6",
        ),
        pytest.param(
            HERE,
            {"SSH_CONNECTION": SSH["SSH_CONNECTION"]},
            tunnel("ssh -N -L 8787:127.0.0.1:8787 10.0.0.5"),
            id="no_user_known",
        ),
        pytest.param(
            "http://10.1.0.7:8787/status",
            SSH,
            tunnel("ssh -N -J me@10.0.0.5 -L 8787:127.0.0.1:8787 me@10.1.0.7"),
            id="scheduler_on_a_node",
        ),
        pytest.param(
            "http://node7:8787/status",
            SSH | {"SSH_CONNECTION": "198.51.100.7 50022 10.0.0.5 2222"},
            tunnel("ssh -N -J me@10.0.0.5:2222 -L 8787:127.0.0.1:8787 me@node7"),
            id="behind_another_port",
        ),
        pytest.param(
            "http://10.0.0.5:8787/status",
            SSH,
            tunnel("ssh -N -L 8787:10.0.0.5:8787 me@10.0.0.5"),
            id="listens_on_the_network",
        ),
        pytest.param(
            HERE,
            SSH | JOB,
            tunnel("ssh -N -J me@10.0.0.5 -L 8787:127.0.0.1:8787 me@node9"),
            id="in_a_job",
        ),
        pytest.param(HERE, JOB, [], id="in_a_job_that_nobody_logged_in_for"),
        pytest.param(
            "http://[::1]:8787/status",
            SSH,
            tunnel("ssh -N -L 8787:[::1]:8787 me@10.0.0.5"),
            id="ipv6_loopback",
        ),
        pytest.param(
            HERE,
            HUB,
            ["In JupyterHub: /user/me/lab-1/proxy/8787/status (needs jupyter-server-proxy)"],
            id="hub",
        ),
        pytest.param(
            "http://node7:34567/status",
            HUB | SSH,
            ["In JupyterHub: /user/me/lab-1/proxy/node7:34567/status (needs jupyter-server-proxy)"],
            id="hub_and_a_scheduler_elsewhere",
        ),
        pytest.param("", SSH, [], id="no_dashboard"),
        pytest.param("/user/me/proxy/8787/status", HUB, [], id="a_link_that_dask_was_told"),
        pytest.param("http://127.0.0.1:none/status", SSH, [], id="no_link"),
        pytest.param(HERE, {"SSH_CONNECTION": "nonsense"}, [], id="no_connection"),
    ],
)
def test_a_tunnel_is_described_for_a_dashboard_on_another_host(link, environment, expected) -> None:
    assert link_hints(link, environment, host="node9") == expected


def test_a_command_prints_the_link_first_and_then_the_tunnel(monkeypatch) -> None:
    for name, value in SSH.items():
        monkeypatch.setenv(name, value)
    shown = io.StringIO()
    RunDisplay(Console(file=shown)).connected("on 2 workers", dashboard=HERE)
    assert shown.getvalue().splitlines() == [
        f"Dashboard: {HERE}",
        *tunnel("ssh -N -L 8787:127.0.0.1:8787 me@10.0.0.5"),
    ]
