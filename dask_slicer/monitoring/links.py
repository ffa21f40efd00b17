"""Dashboard links as the user can open them: SSH tunnels and JupyterHub."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

# Beginnings of the names of this machine that only programs on it can use.
LOOPBACK = ("127.", "localhost", "::1", "[::1]")
_SSH_PORT = "22"
# Each batch system sets one of these in its jobs.
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID")


def link_hints(
    link: str, environment: Mapping[str, str] = os.environ, *, host: str | None = None
) -> list[str]:
    """Return how to open a dashboard from the user's own computer, in lines to show below its link.

    Empty if the link itself seems to work. `host` is the name of this machine, by default its own:
    in a job, the tunnel goes through the login node to it.

    >>> variables = {"SSH_CONNECTION": "198.51.100.7 50022 10.0.0.5 22", "USER": "me"}
    >>> link_hints("http://127.0.0.1:8787/status", variables)[0]
    'From your own computer: ssh -N -L 8787:127.0.0.1:8787 me@10.0.0.5'
    """
    if path := proxied(link, environment):
        return [f"In JupyterHub: {path} (needs jupyter-server-proxy)"]
    parts = _parsed(link)
    connection = environment.get("SSH_CONNECTION", "").split()
    if parts is None or len(connection) != 4:
        return []
    _, _, login, ssh_port = connection
    listens_on, port = str(parts.hostname), parts.port
    user = environment.get("USER") or environment.get("LOGNAME")
    prefix = f"{user}@" if user else ""
    last = listens_on
    if listens_on.startswith(LOOPBACK):
        is_job = any(map(environment.get, _JOBS))
        last = (host or socket.gethostname()) if is_job else login
    if last == login:
        jump, option = "", "" if ssh_port == _SSH_PORT else f"-p {ssh_port} "
        target = "127.0.0.1" if listens_on == "localhost" else _in_url(listens_on)
    else:
        through = login if ssh_port == _SSH_PORT else f"{_in_url(login)}:{ssh_port}"
        jump, option = f"-J {prefix}{through} ", ""
        target = "127.0.0.1"  # Dask listens on loopback there, too
    return [
        f"From your own computer: ssh -N {jump}-L {port}:{target}:{port} {option}{prefix}{last}",
        f"then open there: {parts.scheme}://127.0.0.1:{port}{parts.path}",
    ]


def proxied(link: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the path of a page of this machine in JupyterHub; empty outside JupyterHub.

    >>> proxied("http://127.0.0.1:8787/status", {"JUPYTERHUB_SERVICE_PREFIX": "/user/me/"})
    '/user/me/proxy/8787/status'
    """
    prefix, parts = environment.get("JUPYTERHUB_SERVICE_PREFIX", ""), _parsed(link)
    if not prefix or parts is None:
        return ""
    host = str(parts.hostname)
    # For another host, jupyter-server-proxy needs its name too.
    target = f"{parts.port}" if host.startswith(LOOPBACK) else f"{_in_url(host)}:{parts.port}"
    return f"{prefix.rstrip('/')}/proxy/{target}{parts.path}"


def _parsed(link: str) -> SplitResult | None:
    """Return the parts of a link; None if it has no host or no port."""
    try:
        parts = urlsplit(link)
        is_whole = parts.scheme in ("http", "https") and parts.hostname and parts.port is not None
    except ValueError:  # the port is no number
        return None
    return parts if is_whole else None


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
