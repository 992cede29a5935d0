"""The process of the global control store: `python -m fastray.gcs`.

It announces itself with one line on --ready-fd (stdout by default): "serving ADDRESS", or "failed REASON" and exit
code 1; a standby says "standing by" before. It ends on SIGTERM, SIGINT, or, if told so, with its parent. Started by
process.py.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys

from fastray.exceptions import AuthenticationError, InvalidOptionError
from fastray.gcs import auth
from fastray.gcs.server import GcsServer
from fastray.gcs.store import Store, StoreError, open_store, sqlite_path
from fastray.gcs.tables import GlobalState


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fastray.gcs", description="The global control store.")
    parser.add_argument("--host", default="127.0.0.1", help="anything but loopback needs a token")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--store", default="memory:", help="memory: or sqlite:/path/to/file")
    parser.add_argument("--followed", action="store_true", help="a standby reads along")
    parser.add_argument("--standby", action="store_true", help="serve when the server on this store and port dies")
    parser.add_argument("--token-path", help="file of the token; made, with mode 0600, if it is not there")
    parser.add_argument("--ready-fd", type=int, default=1, help="where the address is announced")
    parser.add_argument(
        "--die-with-parent", type=int, nargs="?", const=-1, metavar="PID", help="end when the parent process ends"
    )
    return parser.parse_args(argv)


def _die_with_parent(parent: int) -> None:
    from fastray._native.node import die_with_parent

    parent = os.getppid() if parent < 0 else parent
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def _announce(fd: int, line: str, *, last: bool = True) -> None:
    try:
        os.write(fd, f"{line}\n".encode())
    except BrokenPipeError:
        pass  # nobody listens any more
    if last and fd > 2:
        os.close(fd)


async def _take_over(arguments: argparse.Namespace) -> tuple[GlobalState, Store]:
    from fastray.gcs.standby import Standby

    if not arguments.port:
        raise InvalidOptionError("a standby needs the port of the server that it stands by for")
    standby = Standby(sqlite_path(arguments.store))
    await standby.prepare()
    _announce(arguments.ready_fd, "standing by", last=False)
    gc.freeze()
    return await standby.take_over()


def _open(arguments: argparse.Namespace) -> tuple[GlobalState, Store]:
    store = open_store(arguments.store, followed=arguments.followed)
    state = GlobalState()
    for table, key, value in store.load():
        state.restore(table, key, value)
    gc.freeze()  # what was loaded is not garbage
    return state, store


async def _serve(arguments: argparse.Namespace) -> None:
    token = auth.load_token(arguments.token_path, create=True)
    tls = auth.load_tls(server=True)
    auth.check_bind(arguments.host, token)
    state, store = await _take_over(arguments) if arguments.standby else _open(arguments)
    server = GcsServer(state, store, token)
    address = await server.start(arguments.host, arguments.port, tls)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    _announce(arguments.ready_fd, f"serving {address}")
    await stopped.wait()
    await server.stop()
    store.close()


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if arguments.die_with_parent is not None:
        _die_with_parent(arguments.die_with_parent)
    try:
        asyncio.run(_serve(arguments))
    except (AuthenticationError, InvalidOptionError, StoreError, OSError) as error:
        _announce(arguments.ready_fd, f"failed {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
