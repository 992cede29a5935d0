"""The main program of a worker process, after the node forked it (node_child.py did the process part).

Attaches to the segment in the slot the node took for it, points the streams at the logs, and hands over to the
loop in C (fastray/_native/worker.pyx). What is left here is rare: loading a function on first use, and the signal
by which the node asks for the running task to stop.
"""

from __future__ import annotations

import _pickle as pickle  # without pickle.py, which costs 8 ms to import
import gc
import os
import signal
import sys

from fastray._native import worker as native
from fastray._native.decoder import loads_pickle
from fastray._native.durable import close_log
from fastray._native.session import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from fastray.exceptions import WorkerCrashedError

FLAG_RETRY_EXCEPTIONS, FLAG_STREAMING, FLAG_READ_ONLY = 1, 2, 8
WORKER = 2  # ProcKind

driver_namespace = ""  # these are set by the node before it forks
driver_labels: dict[str, str] = {}  # of a private node; a daemon's come with the job
record_failures = ""  # directory of init(record_failures=...)


Loaded = tuple[
    "Any", object, str, int, int, bool, int, "str | None", bool, "tuple[int, int]", "list[int]", "bool | int | None"
]


def load_function(index: int) -> Loaded:
    """Function `index` of the table: (function, exceptions to retry on, name, max_retries, returns, streaming,
    max_calls, concurrency group, read-only, digest, captured handles, seed). Raises what unpickling it raises (a
    module that is missing here, say)."""
    from fastray.runtime import current_runtime

    attachment = current_runtime().attachment
    data, handles, retry_on, name, *more = pickle.loads(attachment.function_blob(index))
    group, digest, seed = more or (None, (0, 0), None)
    max_retries, returns, flags, max_calls = attachment.function_options(index)
    if not flags & FLAG_RETRY_EXCEPTIONS:
        retry_on = None
    elif isinstance(retry_on, bytes):
        retry_on = pickle.loads(retry_on)
    if handles:
        function = loads_pickle(data, [attachment.borrow(handle) for handle in handles])
    else:
        function = pickle.loads(data)
    streaming, read_only = bool(flags & FLAG_STREAMING), bool(flags & FLAG_READ_ONLY)
    return (
        *(function, retry_on, name, max_retries, returns, streaming, max_calls, group, read_only),
        *(digest, handles, seed),
    )


def _on_cancel(_signal: int, _frame: object) -> None:
    """The node says that the running task was cancelled; it may have ended meanwhile."""
    if native.current_task_cancelled():
        raise KeyboardInterrupt


def retry_later(handle: int) -> bool:
    """Asks the node to queue this task, which raised again and again, after a delay. False: it cannot be reached."""
    from fastray.control import retry_message
    from fastray.runtime import current_runtime

    try:
        os.write(current_runtime().control_fd, retry_message(handle))
    except OSError:
        return False
    return True


def leave_at_once(code: object) -> None:
    """sys.exit() in a task: the worker ends with the task unfinished, as in Ray; it counts as a crash."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def left_here(code: object) -> WorkerCrashedError:
    """The same in local mode, where there is no process that could end: the error of a crash."""
    from fastray.exceptions import WorkerCrashedError

    number = code if isinstance(code, int) else 0 if code is None else 1
    return WorkerCrashedError(f"the task called sys.exit({code!r}) (local mode)", exit_code=number, pid=os.getpid())


def show_gpus(mask: int) -> None:
    """The tasks that run from now on see the GPUs in `mask`, by index among those the driver sees."""
    visible = os.environ.setdefault("FASTRAY_DRIVER_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    names = [name for name in visible.split(",") if name]
    chosen = [names[i] if i < len(names) else str(i) for i in range(32) if mask >> i & 1]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)


def main(
    segment_fd: int, slot: int, bell_fd: int, control_fd: int, setup_error: Exception | None = None,
    crashed: Sequence[int] = (),
) -> None:  # fmt: skip
    """Runs tasks until the node tells this worker to leave, then ends the process. First it writes down the failures
    of `crashed`: handles of tasks that took their workers with them.

    With `setup_error` (its runtime_env failed) every task fails with RuntimeEnvSetupError.
    """
    from fastray.logs import install_task_streams, unfinished
    from fastray.runtime import Runtime

    signal.signal(signal.SIGUSR1, _on_cancel)
    attachment = Attachment(segment_fd, WORKER, slot, bell_fd)
    runtime = Runtime.for_worker(attachment, control_fd)
    runtime.driver_namespace = driver_namespace
    runtime.driver_labels = driver_labels
    if record_failures:
        from fastray.recovery.failures import FailureRecorder

        recorder = FailureRecorder(runtime, record_failures)
        recorder.start()
        if crashed:
            from fastray.control import recorded_message

            recorder.write_crashed(crashed)
            os.write(control_fd, recorded_message(slot))
    install_task_streams(native.current_task_name)
    native.watch_output(unfinished)
    if attachment.durable_address():
        from fastray.recovery.durable import open_log_here

        open_log_here()
    environment = runtime.job_environment
    if environment and "worker_process_setup_hook" in environment and setup_error is None:
        from fastray.runtime_envs.hook import run_hook

        setup_error = run_hook(environment)
    if setup_error is not None:
        from fastray.exceptions import RuntimeEnvSetupError

        setup_error = RuntimeEnvSetupError(f"the runtime_env of this task failed: {setup_error}")
        native.refuse_tasks(setup_error)
    gc.unfreeze()
    if attachment.is_actor():
        from fastray.actor_worker import serve

        serve(setup_error)
    try:
        native.run()
    finally:
        close_log()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
