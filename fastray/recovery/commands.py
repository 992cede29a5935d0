"""`fastray durable info PATH` and `fastray durable clear PATH`: what a durable path holds, and emptying it.

Both take the path's lock, so neither touches a path that a session uses. Called by cli.py.
"""

from __future__ import annotations

import argparse
import os
import sys

from fastray.exceptions import DurablePathError, DurablePathMismatchError
from fastray.recovery.durable import HEADER, check_header, lock, read_logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs one of the commands; its exit code."""
    parser = argparse.ArgumentParser(prog="fastray durable", description="Paths of init(durable=PATH).")
    parser.add_argument("command", choices=["info", "clear"], help="show what is kept, or delete it")
    parser.add_argument("path")
    given = parser.parse_args(arguments)
    path = os.path.abspath(os.path.expanduser(given.path))
    try:
        if not os.path.exists(os.path.join(path, HEADER)):
            raise DurablePathError(f"{path} is not a durable path: no {HEADER} there", path=path)
        lock_fd = lock(path)
        try:
            print(info(path) if given.command == "info" else clear(path))
        finally:
            os.close(lock_fd)
    except DurablePathError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def info(path: str) -> str:
    """What the next session on the path finds."""
    check_header(path)
    counts = read_logs(path).counts
    return (
        f"{path}: {counts['live']:,} results ({counts['live_bytes']:,} bytes) that tasks may take, of "
        f"{counts['entries']:,} entries in {counts['files']:,} files ({counts['bytes']:,} bytes)"
    )


def clear(path: str) -> str:
    """Deletes logs and header; the next session starts anew."""
    try:
        check_header(path)
        read_logs(path)  # nobody writes them any more
    except DurablePathMismatchError:  # another version's: that is what clear is for
        pass
    names = [n for n in os.listdir(path) if n == HEADER or n.startswith(("log-", "base-")) or n.endswith(".tmp")]
    for name in names:
        os.unlink(os.path.join(path, name))
    return f"{path}: cleared"
