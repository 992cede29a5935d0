"""Starts the store's server as a child, and waits until it serves. Called by the node daemon and the tests.

    GcsProcess    the child: its address, its pid; `kill` and `stop` wait for its end
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping

from fastray.exceptions import RuntimeSystemError

START_WAIT_S = 30.0


class GcsProcess:
    """A running server. Raises RuntimeSystemError, with what it printed, when it does not start."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        store: str = "memory:",
        token_path: str | None = None,
        die_with_parent: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        ready, announced = os.pipe()
        command = [sys.executable, "-m", "fastray.gcs", "--host", host, "--port", str(port)]
        command += ["--store", store, "--ready-fd", str(announced)]
        command += ["--token-path", token_path] if token_path else []
        command += ["--die-with-parent"] if die_with_parent else []
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(announced,),
            env=None if environ is None else dict(environ),
        )
        os.close(announced)
        self.pid = self._child.pid
        self.address = self._wait(ready)

    def _wait(self, ready: int) -> str:
        try:
            readable, _, _ = select.select([ready], [], [], START_WAIT_S)
            line = os.read(ready, 4096).decode().strip() if readable else ""
        finally:
            os.close(ready)
        if not line:
            self._child.kill()
            _, said = self._child.communicate()
            raise RuntimeSystemError(f"the global control store did not start: {said.decode().strip()}")
        return line

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def kill(self, number: int = signal.SIGKILL) -> None:
        self._child.send_signal(number)
        self._child.communicate()

    def stop(self) -> int:
        """SIGTERM: it writes what it has and ends. Its exit code."""
        if self._child.poll() is None:
            self._child.terminate()
        self._child.communicate()
        return self._child.returncode
