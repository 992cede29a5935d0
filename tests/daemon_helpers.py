"""Daemons for tests: a node in a folder of the test's own, and what it holds.

    Daemon    one daemon, started in this process's name; `stop` or `kill` ends it
    held      what attaching must give back: descriptors and processes of the daemon, slots and entries of its tables
    idle      waits until nothing is held for any job
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

from waiting import eventually

from fastray import attach, daemon, node_state
from fastray._native.session import Attachment

END_S = 20.0
HELPERS = 3  # of a head: two servers of the store, the agent


class Daemon:
    """A daemon with 2 CPUs in `folder`."""

    def __init__(self, folder, port=0, **settings):
        given = dict.fromkeys(("num_gpus", "resources", "labels", "object_store_memory"))
        given.update(temp_dir=str(folder), port=port, num_cpus=2, with_starter=False)
        self.info = daemon.launch({**given, **settings})
        self.pid = self.info["pid"]
        self.path = self.info["path"]
        self._pidfd = os.pidfd_open(self.pid)

    def end(self, number):
        """Sends the signal and waits for the end; the exit status."""
        signal.pidfd_send_signal(self._pidfd, number)
        assert select.select([self._pidfd], [], [], END_S)[0], "the daemon did not end"
        os.close(self._pidfd)
        self._pidfd = -1
        return os.waitpid(self.pid, 0)[1]

    def stop(self):
        """Ends it as `fastray stop` does."""
        if self._pidfd >= 0:
            status = self.end(signal.SIGTERM)
            assert status == 0, f"the daemon ended with status {status}"
            assert not os.path.exists(self.path)

    def kill(self):
        """SIGKILL."""
        self.end(signal.SIGKILL)

    def look(self, at):
        """What `at(attachment)` sees as an observer."""
        node = attach.AttachedNode(self.path, observer=True)
        try:
            attachment = Attachment(node.segment_fd, node_state.DRIVER, node.slot, node.bell_fd)
            try:
                return at(attachment)
            finally:
                attachment.detach()
        finally:
            os.close(node.segment_fd)
            os.close(node.bell_fd)
            node.stop()

    def status(self):
        """As `fastray status --json` prints it."""
        return self.look(lambda attachment: node_state.status(attachment, self.info))

    def memory(self):
        """Bytes of memory it has, its own and shared."""
        with open(f"/proc/{self.pid}/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        return sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024

    def held(self):
        """Descriptors and children of the daemon; processes, classes, functions and bytes of its tables."""

        helpers = self.helpers()

        def at(attachment):
            return {
                "processes": sum(pid not in helpers for _, _, pid, *_ in attachment.processes()),
                "classes": attachment.classes_in_use(),
                "functions": attachment.functions_in_use(),
                "bytes": attachment.store_usage()["object_bytes"],
                "actors": len(attachment.actors()),
            }

        found = self.look(at)
        found["descriptors"] = len(os.listdir(f"/proc/{self.pid}/fd"))
        found["children"] = len(self.children()) - len(self.helpers())
        return found

    def children(self):
        with open(f"/proc/{self.pid}/task/{self.pid}/children") as file:
            return [int(pid) for pid in file.read().split()]

    def helpers(self, what=""):
        """Pids of the processes beside the node: "fastray.gcs", "fastray.node agent"."""
        found = []
        for pid in self.children():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
                command = file.read()
                if "fastray.cluster.child" in command and what in command:
                    found.append(pid)
        return found


def idle(daemon):
    """Waits until nothing of any job is left; what the daemon holds then."""
    def nothing():
        held = daemon.held()
        alone = held["processes"] == 2 and len(daemon.helpers()) == HELPERS  # itself, and who looks
        return alone and not held["actors"] and not held["functions"] and not held["children"]

    assert eventually(nothing), daemon.held()
    return daemon.held()


def comes_back_to(daemon, before):
    """Whether the daemon holds again what it held, but for what its jobs share: names of methods."""

    def again():
        now = daemon.held()
        return now["bytes"] < 100_000 and {**now, "bytes": 0} == {**before, "bytes": 0}

    assert eventually(again), (before, daemon.held())
    return True
