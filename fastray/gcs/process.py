"""Starts the store's server as a child, and waits until it serves. Called by the node daemon and the tests.

    GcsProcess    the child: its address, its pid; `kill` and `stop` wait for its end
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Mapping

from fastray.exceptions import RuntimeSystemError

START_WAIT_S = 30.0


class GcsProcess:
    """A running server. Raises RuntimeSystemError, with the reason, when it does not start.

    `log` is a descriptor for what it logs (stderr); this process's own unless given.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        store: str = "memory:",
        token_path: str | None = None,
        die_with_parent: bool = True,
        environ: Mapping[str, str] | None = None,
        log: int | None = None,
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
            stderr=log,
            pass_fds=(announced,),
            env=None if environ is None else dict(environ),
        )
        os.close(announced)
        self.pid = self._child.pid
        self.address = self._wait(ready)

    def _wait(self, ready: int) -> str:
        """The announced address: "serving ADDRESS", or "failed REASON"."""
        try:
            readable, _, _ = select.select([ready], [], [], START_WAIT_S)
            line = os.read(ready, 4096).decode().strip() if readable else f"failed nothing in {START_WAIT_S:g} s"
        finally:
            os.close(ready)
        word, _, rest = line.partition(" ")
        if word != "serving":
            self.kill()
            raise RuntimeSystemError(f"the global control store did not start: {rest or 'it died'}")
        return rest

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL."""
        self._child.kill()
        self._child.wait()

    def stop(self) -> int:
        """SIGTERM: it writes what it has and ends. Its exit code."""
        self._child.terminate()
        return self._child.wait()
