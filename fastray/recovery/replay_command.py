"""`fastray replay`: lists recorded failures, or runs one of them again in this process.

    fastray replay                    id, when, function and error of each failure in the directory, the latest first
    fastray replay TASK_ID            runs it; an exception is shown as Python shows it, exit code 1
    fastray replay TASK_ID --pdb      the same, in the debugger at the line that raised

The directory is that of `init(record_failures=DIR)`: --from DIR, or FASTRAY_RECORD_FAILURES. TASK_ID is what error
messages and `ref.task_id()` show; the end of it is enough when it is the only one. Called by cli.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from fastray.exceptions import ReplayError
from fastray.recovery import replay
from fastray.recovery.failures import VARIABLE, Failure, list_failures

WRONG_ARGUMENTS = 2


def main(arguments: list[str]) -> int:
    """Runs the command; its exit code: 0, 1 when the task raised, 2 when there is no such task."""
    parser = argparse.ArgumentParser(
        prog="fastray replay", description="Runs a recorded failed task again, in this process."
    )
    parser.add_argument("task_id", nargs="?", metavar="TASK_ID", help="without it: list what there is")
    parser.add_argument("--pdb", action="store_true", help="debug where the exception was raised")
    parser.add_argument("--from", dest="directory", metavar="DIR", help=f"default: {VARIABLE}")
    parser.add_argument(
        "--from-constructor", action="store_true", help="a call of an actor without checkpoints: on a new instance"
    )
    given = parser.parse_args(arguments)
    directory = given.directory or os.environ.get(VARIABLE)
    if not directory:
        return _fail(f"which directory? Give --from DIR or set {VARIABLE}; init(record_failures=DIR) fills it")
    if not os.path.isdir(directory):
        return _fail(f"{directory} is no directory: has a task failed with init(record_failures=...) yet?")
    failures = list_failures(directory)
    if given.task_id is None:
        return _list(failures, directory)
    found = [failure for failure in failures if failure.task_id.endswith(given.task_id.lower())]
    if len(found) != 1:
        return _fail(_no_such(given.task_id, found, failures, directory))
    return _run(found[0], given.pdb, given.from_constructor)


def _fail(message: str) -> int:
    print(f"fastray replay: {message}", file=sys.stderr)
    return WRONG_ARGUMENTS


def _list(failures: list[Failure], directory: str) -> int:
    if not failures:
        print(f"no recorded failures in {directory}")
    for failure in failures:
        head = failure.header
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(head["time"]))
        print(f"{failure.task_id}  {when}  {head['name']}  {head['error'].splitlines()[0][:100]}")
    return 0


def _no_such(task_id: str, found: list[Failure], failures: list[Failure], directory: str) -> str:
    if found:
        return f"{task_id} is the end of {len(found)} ids: " + ", ".join(f.task_id for f in found[:5])
    import difflib

    near = difflib.get_close_matches(task_id, [failure.task_id for failure in failures], 3, 0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else f" ({len(failures)} others: leave out TASK_ID)"
    return f"no failure of task {task_id} is recorded in {directory}{hint}"


def _run(failure: Failure, pdb: bool, from_constructor: bool) -> int:
    """Where the task's session was: its directory and import path."""
    import traceback

    sys.path.extend(path for path in failure.header["sys_path"] if path not in sys.path)
    if os.path.isdir(failure.header["cwd"]):
        os.chdir(failure.header["cwd"])
    try:
        value = replay.run(failure.lineage(), pdb=pdb, from_constructor=from_constructor)
    except ReplayError as error:
        return _fail(str(error))
    except BaseException as error:
        if not pdb:
            traceback.print_exception(type(error), error, replay.of_the_user(error.__traceback__))
        return 1
    print(f"task {failure.task_id} ({failure.header['name']}) raised nothing this time; it returned {value!r}")
    return 0
