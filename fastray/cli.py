"""The `fastray` command.

    fastray version          what is installed
    fastray start, stop, status, list   a node that outlives its drivers, see node_commands.py
    fastray microbenchmark   the table of goals, measured here; arguments go to fastray.microbenchmark
    fastray durable          what the path of init(durable=PATH) holds, and emptying it
    fastray replay           failed tasks on record, or one of them run again (fastray.recovery.replay_command)
    fastray killmatrix       kills each kind of process at each moment; arguments go to fastray.sim.kill_matrix

Each command is imported when it is called: `fastray version` answers without starting anything. Called by the
console script and by `python -m fastray`.
"""

from __future__ import annotations

import argparse
import sys

from fastray import node_commands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def installed_version() -> str:
    """Version of the installed distribution; "unknown" in a checkout that was never installed."""
    from importlib import metadata

    try:
        return metadata.version("fastray")
    except metadata.PackageNotFoundError:
        return "unknown"


def _version() -> int:
    import platform

    print(f"fastray {installed_version()} (Python {platform.python_version()}, {platform.machine()})")
    return 0


def _microbenchmark(arguments: list[str]) -> int:
    import importlib

    return int(importlib.import_module("fastray.microbenchmark").main(arguments) or 0)


def _durable(arguments: list[str]) -> int:
    import importlib

    return int(importlib.import_module("fastray.recovery.commands").main(arguments))


def _replay(arguments: list[str]) -> int:
    from fastray.recovery.replay_command import main as replay

    return replay(arguments)


def _kill_matrix(arguments: list[str]) -> int:
    import importlib

    return int(importlib.import_module("fastray.sim.kill_matrix").main(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (the process's arguments); its exit code. Exits with 2 on wrong
    arguments.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="fastray", description="A Ray-compatible task runtime.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("version", help="show what is installed")
    commands.add_parser("replay", help="run a recorded failed task again; --help shows more", add_help=False)
    commands.add_parser(
        "microbenchmark", help="measure this machine; --help shows its options", add_help=False
    )
    node_commands.add_commands(commands)
    commands.add_parser("durable", help="look at or empty a durable path; --help shows how", add_help=False)
    if given[:1] == ["durable"]:
        return _durable(given[1:])
    if given[:1] == ["replay"]:
        return _replay(given[1:])
    commands.add_parser("killmatrix", help="kill processes on purpose; --help shows its options", add_help=False)
    if given[:1] == ["killmatrix"]:
        return _kill_matrix(given[1:])
    if given[:1] == ["microbenchmark"]:  # its own parser reads the rest
        return _microbenchmark(given[1:])
    arguments = parser.parse_args(given)
    if arguments.command in node_commands.COMMANDS:
        return node_commands.run(arguments)
    return _version()
