"""Finding a cluster and its token before a node joins it, and the address that this machine has there.

    HOST:PORT    of the head's global control store; "auto" is the head that runs on this machine

Called by node_commands.py, daemon.py, cluster_utils.py and the agent.
"""

from __future__ import annotations

import os
import socket

from fastray import sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")


def parse_address(address: str) -> tuple[str, int]:
    """(host, port). Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"must be HOST:PORT or auto: {address!r}")
    return host.strip("[]"), int(port)


def find_cluster(address: str, base: str | None = None) -> str:
    """HOST:PORT of the store. Raises ConnectionError when "auto" finds none, ValueError for no address."""
    if address == "auto":
        given = os.environ.get("FASTRAY_ADDRESS", "")
        if ":" in given and os.sep not in given:
            address = given
        else:
            found = next((gcs for _, gcs in _clusters(base or sessions.runtime_dir())), "")
            if not found:
                raise ConnectionError("no head runs on this machine: give the HOST:PORT that `start --head` printed")
            return found
    host, port = parse_address(address)
    return f"[{host}]:{port}" if ":" in host else f"{'127.0.0.1' if host == 'localhost' else host}:{port}"


def _clusters(base: str) -> list[tuple[str, str]]:
    """(session directory, address of the store) of nodes that run here, heads first, then the latest."""
    found = [
        (path, info) for path in sessions.directories(base) for info in [sessions.read_info(path)] if info.get("gcs")
    ]
    found.sort(key=lambda one: not one[1].get("head"))
    return [(path, str(info["gcs"])) for path, info in found if sessions.is_listening(path)]


def is_same_store(a: str, b: str) -> bool:
    """Whether two HOST:PORT are one store, seen from this machine."""
    (host_a, port_a), (host_b, port_b) = parse_address(a), parse_address(b)
    local = (*LOOPBACK, os.uname().nodename)
    return port_a == port_b and (host_a == host_b or (host_a in local and host_b in local))


def find_token(gcs: str, path: str, environ: Mapping[str, str] = os.environ) -> str:
    """The token of the cluster whose store is at `gcs`, for the node in session directory `path`: that of the
    environment, of this directory, of another node of the cluster on this machine, else ~/.fastray/auth_token.

    Raises AuthenticationError.
    """
    from fastray.gcs import auth

    if not environ.get("FASTRAY_AUTH_TOKEN") and not environ.get("FASTRAY_AUTH_TOKEN_PATH"):
        others = [other for other, theirs in _clusters(os.path.dirname(path)) if is_same_store(theirs, gcs)]
        for directory in (path, *others):
            name = os.path.join(directory, sessions.TOKEN)
            if os.path.exists(name):
                return auth.load_token(name, environ=environ)
    return auth.load_token(environ=environ)


def own_address(given: str | None, gcs: str | None) -> str:
    """The address of this node, where it listens and others reach it: the one that is given, else the one that leads to
    the machine at `gcs`, else loopback. Raises ValueError for one that stands for all of them.
    """
    if given in ("0.0.0.0", "::"):
        raise ValueError(f"--node-ip-address: others cannot reach {given}: name one address of this machine")
    if given:
        return given
    if not gcs:
        return "127.0.0.1"
    host, port = parse_address(gcs)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing: it asks the routing table
        return str(probe.getsockname()[0])
