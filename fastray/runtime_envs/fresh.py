"""A worker that goes on as a new interpreter: same process, same descriptors, nothing that the node had imported.

    become    replaces the program of this process (execve). Its parent, process group, streams, directory and
              parent-death signal stay what they are; so to the node it is the worker it forked
    main      the new program: puts `sys.path` together, and hands over to fastray.worker.main

What the new program has to know goes through a descriptor. fastray itself is the node's in any case: both write the
same shared memory. `sys.path` is, in this order: what comes first by the runtime_env; the driver's directories; what
the interpreter has by itself (of a virtual environment: its packages, then its parent's); the driver's packages.

Called by node_child.py.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from fastray.runtime_envs.setup import Setup

PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_PROGRAM = (
    "import sys; sys.path[:] = [{root!r}] + [p for p in sys.path if p]; import fastray; del sys.path[0]; "
    "from fastray.runtime_envs.fresh import main; main({fd})  # fastray.node worker"
)


def become(setup: Setup, settings: dict[str, Any]) -> NoReturn:
    """Runs `setup.interpreter` in this process; `settings`: arguments of worker.main, globals of fastray.worker.

    Raises OSError when there is no such program.
    """
    from fastray.runtime_envs.setup import fastray_root

    root = fastray_root()
    told = {**settings, "sys_path": list(sys.path), "front": setup.front, "root": root, "locks": setup.locks}
    fd = os.memfd_create("worker", 0)  # inherited
    os.write(fd, marshal.dumps(told))
    os.lseek(fd, 0, os.SEEK_SET)
    for kept in (settings["segment"], settings["bell"], settings["control"], *setup.locks):
        os.set_inheritable(kept, True)
    optimized = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    command = [*setup.interpreter, *optimized, "-c", _PROGRAM.format(root=root, fd=fd)]
    os.execvp(command[0], command)


def main(fd: int) -> None:
    """The program of the new interpreter. Does not return."""
    with open(fd, "rb") as file:
        told = marshal.loads(file.read())
    sys.path[:] = path_of(told["front"], told["sys_path"], sys.path, told["root"])
    for kept in (told["segment"], told["bell"], told["control"], *told["locks"]):
        os.set_inheritable(kept, False)
    import fastray.worker
    from fastray.node_child import settle_fresh

    for name in ("driver_namespace", "driver_labels", "record_failures"):
        setattr(fastray.worker, name, told[name])
    settle_fresh()
    fastray.worker.main(
        told["segment"], told["slot"], told["bell"], told["control"], None, told["crashed"]
    )


def path_of(front: list[str], drivers: list[str], own: list[str], root: str) -> list[str]:
    """`sys.path` of a fresh worker; `own` is what the interpreter started with."""
    own = [path for path in own if path]
    others = [path for path in drivers if path not in own]
    behind = [path for path in others if os.path.basename(path) in PACKAGE_FOLDERS]
    before = [path for path in others if path not in behind]
    return list(dict.fromkeys([*front, *before, *own, *behind, root]))
