"""Starts the store's server as a child, and waits until it serves. Called by the node daemon and the tests.

    GcsProcess    the child: its address, its pid; `kill` and `stop` wait for its end
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping

from fastray.exceptions import RuntimeSystemError

START_WAIT_S = 30.0


class GcsProcess:
    """A running server. Raises RuntimeSystemError, with the reason, when it does not start.

    With `die_with_parent` it dies when the thread that made it ends: the kernel counts threads. A `standby`
    serves when the server on this store and port dies, which must be `followed`; `serving` waits for that. `log`
    is a descriptor for what it logs (stderr); this process's own unless given.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        store: str = "memory:",
        token_path: str | None = None,
        followed: bool = False,
        standby: bool = False,
        die_with_parent: bool = True,
        environ: Mapping[str, str] | None = None,
        log: int | None = None,
    ) -> None:
        ready, announced = os.pipe()
        command = [sys.executable, "-m", "fastray.gcs", "--host", host, "--port", str(port)]
        command += ["--store", store, "--ready-fd", str(announced)]
        command += ["--token-path", token_path] if token_path else []
        command += ["--followed"] if followed else []
        command += ["--standby"] if standby else []
        command += ["--die-with-parent"] if die_with_parent else []
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(announced,),
            env=None if environ is None else dict(environ),
        )
        os.close(announced)
        self.pid = self._child.pid
        self._ready = ready
        self.address = f"{host}:{port}"
        if standby:
            self._wait("standing")
        else:
            self.serving()

    def serving(self, wait_s: float = START_WAIT_S) -> str:
        """The address, once it serves. Raises RuntimeSystemError."""
        if self._ready >= 0:
            self.address = self._wait("serving", wait_s)
            self._forget_ready()
        return self.address

    def _forget_ready(self) -> None:
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1

    def _wait(self, wanted: str, wait_s: float = START_WAIT_S) -> str:
        """What follows the word `wanted`, which it announces next; "failed REASON" ends it."""
        deadline, line = time.monotonic() + wait_s, b""
        while not line.endswith(b"\n"):  # byte by byte: the next line may follow at once
            readable, _, _ = select.select([self._ready], [], [], max(0.0, deadline - time.monotonic()))
            char = os.read(self._ready, 1) if readable else b""
            line = line + char if char else (b"failed it died\n" if readable else b"failed too slow\n")
        word, _, rest = line.decode().strip().partition(" ")
        if word != wanted:
            self.kill()
            raise RuntimeSystemError(f"the global control store did not start: {rest}")
        return rest

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL."""
        self._forget_ready()
        self._child.kill()
        self._child.wait()

    def stop(self) -> int:
        """SIGTERM: it writes what it has and ends. Its exit code."""
        self._forget_ready()
        self._child.terminate()
        return self._child.wait()
