"""Dashboard links as the user can open them: SSH tunnels and JupyterHub."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

_SSH_PORT = "22"
# Each batch system sets one of these in its jobs.
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID")
_CONNECTION_PARTS = 4


class _Server(NamedTuple):
    """Where the user has logged in by SSH."""

    user: str
    host: str
    port: str

    def at(self, host: str) -> str:
        return f"{self.user}@{host}" if self.user else host


def ways_to_see(link: str, environment: Mapping[str, str], *, host: str = "") -> list[str]:
    """Return what to do to see a dashboard whose link does not lead there from elsewhere.

    Parameters
    ----------
    link : str
        Of the dashboard, as Dask has it.
    environment : mapping
        Variables of this process.
    host : str
        Name of this machine: in a job, the hop after the one that the user has logged in to.

    Returns
    -------
    list of str
        Lines to be shown after the link; none where nothing is known to be in the way.

    Examples
    --------
    >>> known = {"SSH_CONNECTION": "198.51.100.7 50022 10.0.0.5 22", "USER": "me"}
    >>> ways_to_see("http://127.0.0.1:8787/status", known)[0]
    'From your own computer: ssh -N -L 8787:127.0.0.1:8787 me@10.0.0.5'
    """
    if path := proxied(link, environment):
        return [f"In JupyterHub: {path} (needs jupyter-server-proxy)"]
    found, server = _place(link), _server(environment)
    if found is None or server is None:
        return []
    parts, there, port = found
    hops = _hops(there, server, host if any(map(environment.get, _JOBS)) else "")
    target = "127.0.0.1" if len(hops) > 1 or there == "localhost" else _in_url(there)
    return [
        f"From your own computer: {_command(hops, server, f'{port}:{target}:{port}')}",
        f"and there: {parts.scheme}://127.0.0.1:{port}{parts.path}",
    ]


def proxied(link: str, environment: Mapping[str, str]) -> str:
    """Return where JupyterHub has a page of this machine; nothing where there is no JupyterHub.

    Examples
    --------
    >>> proxied("http://127.0.0.1:8787/status", {"JUPYTERHUB_SERVICE_PREFIX": "/user/me/"})
    '/user/me/proxy/8787/status'
    """
    prefix, found = environment.get("JUPYTERHUB_SERVICE_PREFIX", ""), _place(link)
    if not prefix or found is None:
        return ""
    parts, there, port = found
    # Of another host, jupyter-server-proxy wants the name too.
    target = f"{port}" if _is_loopback(there) else f"{_in_url(there)}:{port}"
    return f"{prefix.rstrip('/')}/proxy/{target}{parts.path}"


def _place(link: str) -> tuple[SplitResult, str, int] | None:
    """Return a link's parts, its host and its port; nothing if it lacks any."""
    try:
        parts = urlsplit(link)
        there, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not there or port is None:
        return None
    return parts, there, port


def _server(environment: Mapping[str, str]) -> _Server | None:
    """Return where the user has logged in: what the SSH client connected to, as seen there."""
    parts = environment.get("SSH_CONNECTION", "").split()
    if len(parts) != _CONNECTION_PARTS:
        return None
    user = environment.get("USER") or environment.get("LOGNAME") or ""
    return _Server(user=user, host=parts[2], port=parts[3])


def _hops(there: str, server: _Server, job_host: str) -> list[str]:
    """Return the hosts to go through; a dashboard that is not here listens on loopback, there."""
    if _is_loopback(there):
        return [server.host, job_host] if job_host else [server.host]
    return [server.host] if there == server.host else [server.host, there]


def _command(hops: list[str], server: _Server, forwarded: str) -> str:
    *jumps, last = hops
    words = ["ssh -N"]
    for host in jumps:
        port = "" if server.port == _SSH_PORT else f":{server.port}"
        words.append(f"-J {server.at(_in_url(host) if port else host)}{port}")
    words.append(f"-L {forwarded}")
    if not jumps and server.port != _SSH_PORT:
        words.append(f"-p {server.port}")
    return " ".join([*words, server.at(last)])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
