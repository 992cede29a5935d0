"""Machines for tests: network and PID namespaces, behind a router in a namespace of its own.

    Machine    a network namespace with one interface, a PID namespace, a mount namespace with its own /proc; the files
               are this machine's. A node in it has an address of its own, and the small pids of a machine that has
               just started
    Network    the router. It forwards between machines; `cut` makes it drop packets, without a word to either side
    unplug     the interface of a machine goes down
    off        the first process of a machine's PID namespace is killed: the kernel kills all others with it

Nothing has a name outside of the namespaces, so networks of several test processes do not meet, and addresses cannot
collide. Each namespace ends when its first process does, which reads a pipe that this process holds: all goes with
the test process, however that ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys

from fastray import sessions

UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# The first process: the kernel reaps what is orphaned, since it ignores SIGCHLD. It ends when the pipe closes.
FIRST = "import os, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.write(1, b'.'); os.read(0, 1)"
END_S = 30.0
PROGRAM_S = 60.0
TOOLS = ("unshare", "nsenter", "ip")


@functools.cache
def missing():
    """Why there can be no namespaces here; "" when there can. Tries it."""
    absent = [name for name in TOOLS if shutil.which(name) is None]
    if absent:
        return f"network namespaces need {' and '.join(absent)}"
    script = (
        "ip link set lo up && ip link add veth0 type veth peer name veth1 && ip rule add from 10.0.0.1 blackhole "
        "&& echo 1 > /proc/sys/net/ipv4/ip_forward"
    )
    tried = subprocess.run([*UNSHARE, "sh", "-c", script], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()[:200]}"


class _Namespace:
    """Namespaces, and the process that holds them."""

    def __init__(self):
        command = [*UNSHARE, sys.executable, "-IS", "-c", FIRST]
        pipe, none = subprocess.PIPE, subprocess.DEVNULL  # unshare says things when its child is killed
        self._keeper = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=none)
        assert os.read(self._keeper.stdout.fileno(), 1) == b".", "the namespaces were not made"
        with open(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children") as file:
            self.first = int(file.read())
        self.enter = ("nsenter", "--target", str(self.first), "--net", "--pid", "--mount", "--")
        self.shell("ip link set lo up")

    def shell(self, script):
        """Of the network only: pids are this process's."""
        command = ["nsenter", "--target", str(self.first), "--net", "--", "sh", "-ec", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"

    def close(self):
        """Returns when all that ran in here is dead."""
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            pipe.close()
        self._keeper.wait(END_S)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)
        self.close()


class Network:
    """Its machines keep their files in `folder`, each in one of its own. A context manager."""

    def __init__(self, folder):
        self._folder = folder
        self._router = _Namespace()
        self._router.shell("echo 1 > /proc/sys/net/ipv4/ip_forward")
        self.machines = []

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        for machine in self.machines:
            machine.close()
        self._router.close()

    def machine(self):
        """One machine more."""
        number = len(self.machines) + 1
        made = Machine(number, self._folder / f"machine{number}", self._router)
        self.machines.append(made)
        return made

    def cut(self, a, b=None, one_way=False):
        """No packet gets from `a` to `b` (None: to anybody), nor back, unless it is `one_way`."""
        self._change("add", a, b, one_way)

    def mend(self, a, b=None, one_way=False):
        """Takes back the same `cut`."""
        self._change("del", a, b, one_way)

    def _change(self, verb, a, b, one_way):
        rules = [f"from {a.host}" + (f" to {b.host}" if b else "")]
        if not one_way:
            rules.append(f"to {a.host}" + (f" from {b.host}" if b else ""))
        self._router.shell("; ".join(f"ip rule {verb} {rule} blackhole" for rule in rules))


class Machine:
    """`host` is its address, `path` the session directory of its node, `info` what the node wrote about itself."""

    def __init__(self, number, folder, router):
        self.host = f"10.7.{number}.2"
        self.folder = folder
        self.path = ""
        self._namespace = _Namespace()
        self._router = router
        self._port = f"m{number}"
        self._home = folder / "home"
        self._home.mkdir(parents=True)
        self._drivers = []
        router.shell(
            f"ip link add {self._port} type veth peer name eth0 netns {self._namespace.first}; "
            f"ip addr add 10.7.{number}.1/30 dev {self._port}; ip link set {self._port} up"
        )
        self._namespace.shell(
            f"ip addr add {self.host}/30 dev eth0; ip link set eth0 up; ip route add default via 10.7.{number}.1"
        )

    # ---- what runs in it ------------------------------------------------------------------------------

    def environ(self, **more):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTRAY_AUTH")}
        return {**kept, "HOME": str(self._home), "FASTRAY_TMPDIR": str(self.folder), "PYTHONUNBUFFERED": "1", **more}

    def command(self, *arguments, **environ):
        """`fastray ARGUMENTS` in here, as `subprocess.run` returns it."""
        command = [*self._namespace.enter, sys.executable, "-m", "fastray", *arguments]
        return subprocess.run(
            command, env=self.environ(**environ), capture_output=True, text=True, timeout=PROGRAM_S, check=False
        )

    def start(self, *options, head=None, **environ):
        """A node, of `head`'s cluster, or a head."""
        if head is None:
            options = ("--head", f"--node-ip-address={self.host}", *options)
        else:
            options = (f"--address={head.info['gcs']}", *options)
            environ = {"FASTRAY_AUTH_TOKEN_PATH": head.token_path, **environ}
        done = self.command("start", *options, **environ)
        assert done.returncode == 0, done.stderr
        (self.path,) = [path for path in sessions.directories(str(self.folder)) if path != self.path]

    @property
    def info(self):
        return sessions.read_info(self.path)

    @property
    def node_id(self):
        return self.info["node_id"]

    @property
    def token_path(self):
        return os.path.join(self.path, sessions.TOKEN)

    def program(self, source, *arguments, **environ):
        """Runs Python source in here, with tests/ on its path, until its end; the JSON of each line it printed."""
        with self.driver(source, *arguments, **environ) as driver:
            return driver.rest()

    def driver(self, source, *arguments, **environ):
        """The same, to talk to: see Driver."""
        made = Driver(self._namespace.enter, source, arguments, self.environ(**environ))
        self._drivers.append(made)
        return made

    def pids(self):
        """Those of fastray's processes in here, as they are in here -> command line."""
        found = {}
        for name in os.listdir(f"/proc/{self._namespace.first}/root/proc"):
            with contextlib.suppress(OSError, ValueError), open(
                f"/proc/{self._namespace.first}/root/proc/{int(name)}/cmdline"
            ) as file:
                found[int(name)] = file.read().replace("\0", " ")
        return {pid: command for pid, command in found.items() if "fastray" in command}

    def sent(self):
        """Bytes that have come from it to the router."""
        with open(f"/proc/{self._router.first}/net/dev") as file:
            return next(int(line.split()[1]) for line in file if line.strip().startswith(f"{self._port}:"))

    def next_pid(self, pid):
        """The next process here gets this pid, if it is free."""
        script = f"echo {pid - 1} > /proc/sys/kernel/ns_last_pid"
        subprocess.run([*self._namespace.enter, "sh", "-c", script], check=True)

    # ---- what happens to it ---------------------------------------------------------------------------

    def unplug(self):
        self._router.shell(f"ip link set {self._port} down")

    def plug(self):
        self._router.shell(f"ip link set {self._port} up")

    def off(self):
        self._namespace.kill()

    def close(self):
        for driver in self._drivers:
            driver.end()
        self._namespace.close()


class Driver:
    """A Python program in a machine. What it prints are lines of JSON; what it reads are lines too."""

    def __init__(self, enter, source, arguments, environ):
        prelude = f"import json, sys; sys.path.append({os.path.dirname(__file__)!r})\n"
        prelude += "def say(*what): print(json.dumps(what), flush=True)\n"
        command = [*enter, sys.executable, "-c", prelude + source, *map(str, arguments)]
        self._process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.end()

    def hears(self):
        """The next line."""
        assert select.select([self._process.stdout], [], [], PROGRAM_S)[0], "the driver says nothing"
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        return json.loads(line)

    def tell(self, line=""):
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def rest(self):
        """Waits for its end; all lines that were not read."""
        out, err = self._process.communicate(timeout=PROGRAM_S)
        assert self._process.returncode == 0, err
        return [json.loads(line) for line in out.splitlines()]

    def end(self):
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate(timeout=END_S)
