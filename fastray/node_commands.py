"""`fastray start`, `stop`, `status` and `list`: a node that outlives its drivers, from the shell.

    start          a daemon (daemon.py), the head of a cluster or a node that joins one; returns when it has joined,
                   with --block when it ends
    stop           ends the daemons of this user in one runtime directory, and everything they started
    status, list, summary
                   what a daemon's node does, as an observer of its shared memory; what its agent knows of the cluster

Exit codes: 0; 1 when it did not work or nothing runs (said on stderr); 2 for wrong arguments. Called by cli.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastray._native.session import Attachment
    from fastray.attach import AttachedNode

COMMANDS = ("start", "stop", "status", "list", "summary")
GRACE_S = 10.0  # for a daemon to end by itself
KILL_WAIT_S = 5.0
TASKS_SHOWN = 100


# ---- arguments -----------------------------------------------------------------------------------------


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"not a JSON object: {text}")
    return value


def _labels(text: str) -> dict[str, str]:
    """key=value,key=value as Ray's, or a JSON object."""
    if text.lstrip().startswith("{"):
        return _json_object(text)
    pairs = [part.partition("=") for part in text.split(",") if part]
    if not all(name and equals for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"must be key=value,key=value: {text!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _port(text: str) -> int:
    if not text.isdigit() or not 0 <= int(text) < 65536:
        raise argparse.ArgumentTypeError(f"no port: {text!r}")
    return int(text)


def _address(text: str) -> str:
    from fastray.cluster.launch import parse_address

    if text != "auto":
        try:
            parse_address(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _store(text: str) -> str:
    if text != "memory:" and not text.startswith("sqlite:/"):
        raise argparse.ArgumentTypeError(f"must be sqlite:/PATH or memory: {text!r}")
    return text


def _filter(text: str) -> tuple[str, str, str]:
    field, relation, value = text.partition("!=" if "!=" in text else "=")
    if not field or not relation:
        raise argparse.ArgumentTypeError(f"must be FIELD=VALUE or FIELD!=VALUE: {text!r}")
    return field.strip(), relation, value.strip()


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the parsers of these commands."""
    from fastray.sessions import PORT

    start = commands.add_parser("start", help="start a node that drivers attach to")
    role = start.add_mutually_exclusive_group(required=True)
    role.add_argument("--head", action="store_true", help="start the first node of a cluster, with its control store")
    role.add_argument("--address", type=_address, help="HOST:PORT of the cluster to join; auto: of this machine's head")
    start.add_argument("--port", type=_port, help=f"where a head's control store listens (default: {PORT}; 0: any)")
    start.add_argument("--node-ip-address", help="of this node (default: loopback, or what leads to the head)")
    start.add_argument("--store", type=_store, help="sqlite:/PATH (default: in the session directory) or memory:")
    start.add_argument("--num-cpus", type=int, help="default: those of the machine")
    start.add_argument("--num-gpus", type=int)
    start.add_argument("--resources", type=_json_object, help='JSON: {"name": amount}')
    start.add_argument("--labels", type=_labels, help="key=value,...")
    start.add_argument("--object-store-memory", type=int, help="bytes")
    start.add_argument("--block", action="store_true", help="stay until the node ends, and end it when stopped")
    stop = commands.add_parser("stop", help="stop the nodes that were started here")
    stop.add_argument("-f", "--force", action="store_true", help="kill them")
    stop.add_argument("--port", type=_port, help="only this one")
    status = commands.add_parser("status", help="what a node does")
    listing = commands.add_parser("list", help="a table of a node")
    listing.add_argument("table", choices=("actors", "jobs", "nodes", "tasks", "workers"))
    listing.add_argument("-f", "--filter", action="append", type=_filter, default=[], help="FIELD=VALUE, FIELD!=VALUE")
    listing.add_argument("--limit", type=int, help="rows (default: all; 100 of tasks)")
    summary = commands.add_parser("summary", help="counts of a table")
    summary.add_argument("table", choices=("tasks",))
    for parser in (status, listing, summary):
        parser.add_argument("--address", default="auto", help="as init(address=...); default: the latest node")
        parser.add_argument("--json", action="store_true", help="for programs")
    for parser in (start, stop, status, listing, summary):
        parser.add_argument("--temp-dir", help="where sessions are; default: FASTRAY_TMPDIR, XDG_RUNTIME_DIR, /tmp")


def run(arguments: argparse.Namespace) -> int:
    """Runs one of COMMANDS; its exit code."""
    if arguments.temp_dir:
        os.environ["FASTRAY_TMPDIR"] = os.path.abspath(arguments.temp_dir)
    try:
        if arguments.command == "start":
            return _start(arguments)
        if arguments.command == "stop":
            return _stop(arguments)
        return _look(arguments)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        print(f"fastray {arguments.command}: {error}", file=sys.stderr)
        return 1


# ---- start ---------------------------------------------------------------------------------------------


def _start(arguments: argparse.Namespace) -> int:
    from fastray import config, daemon, sessions
    from fastray.cluster.launch import find_cluster

    if any(importlib.util.find_spec(name) is None for name in ("grpc", "msgspec", "pyarrow")):
        print("fastray start: needs grpcio, msgspec and pyarrow: pip install 'fastray[cluster]'", file=sys.stderr)
        return 1
    names = ("num_cpus", "num_gpus", "resources", "labels", "object_store_memory")
    node = {name: getattr(arguments, name) for name in names}
    try:
        config.parse_init(**node)
    except (TypeError, ValueError) as error:
        print(f"fastray start: {str(error).replace('init(', 'option (', 1)}", file=sys.stderr)
        return 2
    if arguments.address and (arguments.port is not None or arguments.store):
        print("fastray start: --port and --store are a head's: they do not go with --address", file=sys.stderr)
        return 2
    port = sessions.PORT if arguments.port is None else arguments.port
    settings = {
        **node, "temp_dir": arguments.temp_dir, "port": port, "with_starter": arguments.block,
        "address": arguments.address and find_cluster(arguments.address), "host": arguments.node_ip_address,
        "store": arguments.store,
    }  # fmt: skip
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING if arguments.block else ())
    try:
        info = daemon.launch(settings)
    except daemon.StartError as error:
        hint = "; `fastray stop` ends it, --port or --temp-dir start another" if error.running else ""
        print(f"fastray start: {error}{hint}", file=sys.stderr)
        return 1
    _say_how_to_go_on(info)
    if arguments.block:
        return _block(int(info["pid"]))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return 0


def _say_how_to_go_on(info: dict[str, Any]) -> None:
    gcs = info["gcs"]
    joined = "" if info["head"] else f", in the cluster at {gcs}"
    print(f"The node runs: pid {info['pid']}, {info['session']}, in {info['path']}{joined}\n")
    if info["head"]:
        print(f"To join another node:    fastray start --address={gcs}")
    print('To attach a driver:      fastray.init(address="auto")')
    print(f'or, whatever else runs:  fastray.init(address="{gcs}")   # FASTRAY_ADDRESS={gcs}')
    print("What it does:            fastray status\nTo end it:               fastray stop", flush=True)


_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


def _block(pid: int) -> int:
    """Stays until the daemon ends; SIGINT and SIGTERM end it."""
    while True:
        number = signal.sigwait(_STOPPING)
        if number != signal.SIGCHLD:
            os.kill(pid, signal.SIGTERM)
        ended, status = os.waitpid(pid, os.WNOHANG if number == signal.SIGCHLD else 0)
        if ended == pid:
            return 0 if number != signal.SIGCHLD or status == 0 else 1


# ---- stop ----------------------------------------------------------------------------------------------


def _stop(arguments: argparse.Namespace) -> int:
    from fastray import sessions

    base = sessions.runtime_dir()
    paths = list(sessions.directories(base))
    if arguments.port is not None:
        paths = [path for path in paths if sessions.read_info(path).get("port") == arguments.port]
    paths.sort(key=lambda path: bool(sessions.read_info(path).get("head")))  # last: the others say goodbye to it
    stopped = failed = stale = hidden = 0
    for path in paths:
        try:
            pidfd, pid = _daemon_of(path)
        except OSError:
            stale += sessions.remove_stale(path)
            continue
        if not pid:
            print(f"fastray stop: the node in {path} is of another PID namespace: stop it there", file=sys.stderr)
            os.close(pidfd)
            hidden += 1
            continue
        ended = _end(pidfd, pid, arguments.force)
        os.close(pidfd)
        sessions.remove_stale(path)
        stopped, failed = stopped + ended, failed + (not ended)
    if stale:
        print(f"Removed what {stale} killed node{'s' * (stale > 1)} left in {base}.")
    if stopped:
        print(f"Stopped {stopped} node{'s' * (stopped > 1)}.")
    elif not failed and not hidden:
        print(f"No node runs in {base}.")
    if failed:
        print(f"fastray stop: {failed} did not end; try --force", file=sys.stderr)
    return 1 if failed or hidden else 0


def _daemon_of(path: str) -> tuple[int, int]:
    """(pidfd, pid) of the process that listens in this session directory; see sessions.peer_of. Raises OSError when
    there is none.

    The kernel says which it is, so that a number in a file that is somebody else's by now does no harm.
    """
    from fastray import sessions

    with sessions.connect(path) as connection:
        pidfd, pid = sessions.peer_of(connection)
        if sessions.is_listening(path):  # it did not end, and its number pass on, in between
            return pidfd, pid
    os.close(pidfd)
    raise ProcessLookupError(pid)


def _end(pidfd: int, pid: int, force: bool) -> bool:
    """Ends a daemon and what it started; False when it does not."""
    if not force:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if select.select([pidfd], [], [], GRACE_S)[0]:
            return True
    started = _descendants(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    ended = bool(select.select([pidfd], [], [], KILL_WAIT_S)[0])
    for fd in started:  # its workers are dead by now, what they started may not be
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(fd)
    return ended


def _descendants(pid: int) -> list[int]:
    """A pidfd of each process below `pid`."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
                children = [int(word) for word in file.read().split()]
        except OSError:  # it ended
            continue
        waiting += children
        for child in children:
            try:
                found.append(os.pidfd_open(child))
            except OSError:
                continue
    return found


# ---- looking -------------------------------------------------------------------------------------------


def _look(arguments: argparse.Namespace) -> int:
    from fastray import attach, node_state
    from fastray._native.session import Attachment
    from fastray.cluster import members

    node = attach.AttachedNode(attach.find(arguments.address), observer=True)
    try:
        attachment = Attachment(node.segment_fd, node_state.DRIVER, node.slot, node.bell_fd)
        if arguments.command == "status":
            _show_status(_status(attachment, node), arguments.json)
        elif arguments.command == "summary":
            _show_summary(members.task_summary(node.path), arguments.json)
        else:
            rows = _rows(arguments, attachment, node.path)
            short = arguments.table == "tasks" and not arguments.json
            _show_table([_task_line(row) for row in rows] if short else rows, arguments.json)
        attachment.detach()
    finally:
        os.close(node.segment_fd)
        os.close(node.bell_fd)
        node.stop()
    return 0


def _rows(arguments: argparse.Namespace, attachment: Attachment, path: str) -> list[Any]:
    from fastray import node_state
    from fastray.cluster import members
    from fastray.util.state import select

    limit = arguments.limit
    if arguments.table == "tasks":
        limit = TASKS_SHOWN if limit is None else limit
        rows = members.task_table(path, arguments.filter, limit)
    elif arguments.table in members.TABLES:
        rows = members.TABLES[arguments.table](path, attachment)
    else:
        rows = getattr(node_state, arguments.table)(attachment)
    return select(rows, arguments.filter, max(1, len(rows)) if limit is None else limit)


def _task_line(row: Any) -> dict[str, object]:
    """What a line of a terminal has room for."""
    began, ended = row["start_time_ms"], row["end_time_ms"]
    seconds = ((ended or 1000 * time.time()) - began) / 1000 if began else 0.0
    return {
        "task_id": row["task_id"], "attempt": row["attempt_number"], "function": row["name"], "state": row["state"],
        "job": row["job_id"], "node": row["node_id"][:16], "pid": row["worker_pid"] or "",
        "began": time.strftime("%m-%d %H:%M:%S", time.localtime(began / 1000)) if began else "",
        "seconds": f"{seconds:.3f}", "error": (row["error_message"] or "").partition("\n")[0],
    }  # fmt: skip


def _show_summary(found: dict[str, Any], as_json: bool) -> None:
    """Of tasks: a line for each function."""
    if as_json:
        print(json.dumps(found))
        return
    rows = []
    for name, row in found["cluster"]["summary"].items():
        counts = row["state_counts"]
        ended = counts.get("FINISHED", 0) + counts.get("FAILED", 0)
        rows.append({
            "function": name, "running": counts.get("RUNNING", 0), "finished": counts.get("FINISHED", 0),
            "of these estimated": row["finished_estimated"], "failed": counts.get("FAILED", 0),
            "mean seconds": f"{row['seconds_sum'] / ended:.6f}" if ended else "",
            "longest": f"{row['seconds_max']:.6f}",
        })  # fmt: skip
    _show_table(rows, False)


def _status(attachment: Attachment, node: AttachedNode) -> dict[str, Any]:
    """As `node_state.status`, with the nodes alive and the drivers of the whole cluster, this node first."""
    from fastray import node_state
    from fastray.cluster import members

    info = node.info()
    here = node_state.node_id_of(attachment)
    rows = [row for row in members.node_table(node.path, attachment) if row["state"] == "ALIVE"]
    return {
        **node_state.status(attachment, info),
        "gcs": info.get("gcs"),
        "nodes": sorted(rows, key=lambda row: row["node_id"] != here),
        "drivers": [row for row in members.job_table(node.path, attachment) if row["status"] == "RUNNING"],
    }


def _show_status(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(status))
        return
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - (status["uptime_s"] or 0)))
    print(f"{status['session']}, pid {status['pid']}, since {since}, in {status['path']}")
    print(f"Cluster at {status['gcs']}: {len(status['nodes'])} nodes alive")
    for node in status["nodes"]:
        head = ", the head" if node["is_head_node"] else ""
        print(f"\nNode {node['node_id'][:16]} at {node['node_ip']}, pid {node['pid']}{head}: used of total")
        for name, total in node["resources_total"].items():
            used = total - node["resources_available"].get(name, 0)
            print(f"  {_amount(name, used):>12} of {_amount(name, total):<12} {name}")
    print(f"\nOn this node {status['workers']} workers, {status['running_tasks']} of them run a task")
    print(f"{len(status['drivers'])} drivers attached")
    for row in status["drivers"]:
        print(f"  job {row['job_id']}  pid {row['pid']}  namespace {row['namespace']}  {row['entrypoint']}")
    print(f"{len(status['actors'])} actors on this node")
    for row in status["actors"]:
        named = f"  {row['name']!r} in {row['ray_namespace']}" if row["name"] else ""
        detached = "  detached" if row["is_detached"] else ""
        print(f"  {row['class_name']}  {row['state']}  pid {row['pid']}  job {row['job_id']}{named}{detached}")


def _amount(name: str, value: float) -> str:
    return f"{value / (1 << 20):.1f} MiB" if "memory" in name else f"{value:g}"


def _show_table(rows: list[Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        print("none")
        return
    names = [name for name in rows[0] if not isinstance(rows[0][name], dict)]
    cells = [names] + [[str(row[name]) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
