"""The report of a worker's death: bytes as the node writes them, values, messages."""

from __future__ import annotations

import pickle

from fastray import crash_report
from fastray.crash_errors import Attempt, describe_process
from fastray.crash_report import ATTEMPT, EVENT, REPORT, ProcessEvent, clean_tail, read_crash, read_events
from fastray.exceptions import TaskTimeoutError, WorkerCrashedError

SESSION, TASK = 0xABCD, 0x10000000001
NAMES = {5: "f", 6: "child"}


def report(
    last=(7, 9, 0, 0), attempts=3, earlier=((5, 0, 3, 0), (6, 9, 0, 1500)), events=(), tail=b"boom\n", oom_kills=0
):
    head = REPORT.pack(
        *last, attempts, 5, TASK, 64_000_000, 2_500_000_000, 10**18, oom_kills, len(earlier), len(events), 0
    )
    rows = [ATTEMPT.pack(*row) for row in earlier] + [EVENT.pack(*row) for row in events]
    return head + b"".join(rows) + tail


EVENTS = [
    (3_000_000_000, 0, 0, 2 << 9 | crash_report.LEASE),
    (2_000_000_000, 1_500_000, TASK - 1, 6 << 9 | crash_report.TASK),
    (1_000_000_000, 5_000, TASK - 1, 6 << 9 | 0x100 | crash_report.TASK),
    (900_000_000, -1, TASK, 5 << 9 | crash_report.TASK),
    (800_000_000, 700_000_000, TASK + 1, 6 << 9 | crash_report.BLOCKED),
    (700_000_000, 0, TASK + 2, 100 << 9 | crash_report.CHECKPOINT),
    (600_000_000, 0, 0, 2 << 9 | crash_report.RETURNED),
]


def test_sizes_are_those_of_the_node():
    assert (REPORT.size, ATTEMPT.size, EVENT.size) == (72, 16, 32)  # static_asserts in csrc/crash_report.h


def test_every_field_arrives():
    error = read_crash(report(events=EVENTS), SESSION, NAMES.__getitem__)
    assert type(error) is WorkerCrashedError
    assert (error.pid, error.signal, error.exit_code, error.attempts) == (7, 9, None, 3)
    assert (error.last_task, error.task_id) == ("f", f"{SESSION:016x}{TASK:016x}")
    assert (error.peak_memory_bytes, error.uptime_s, error.died_at, error.oom_kills) == (64_000_000, 2.5, 1e9, 0)
    assert error.earlier == [Attempt(5, None, 3), Attempt(6, 9, None, 1.5)]
    assert [event.kind for event in error.events] == [
        "lease", "task", "task", "task", "blocked", "checkpoint", "returned",
    ]  # fmt: skip
    assert error.stderr_tail == "boom\n"
    back = pickle.loads(pickle.dumps(error))
    assert vars(back) == vars(error)


def test_the_message_has_a_line_for_each_thing_known():
    error = read_crash(report(events=EVENTS, oom_kills=1), SESSION, NAMES.__getitem__)
    task = f"{SESSION:016x}{TASK:016x}"
    assert str(error).split("\n") == [
        "The worker process (pid 7) was killed by SIGKILL (9) while it ran task f; tried 3 times.",
        f"Task id: {task}",
        "It lived for 2.5 s and had at most 64 MB of memory. "
        "The kernel's out-of-memory killer was at work at that time.",
        "Attempt 1: pid 5 exited with code 3.",
        "Attempt 2: pid 6 was killed by fastray because of timeout_s=1.5.",
        "Last events before its death:",
        f"  -2.000000 s  task child {task[:-1]}0 took 1.5 ms",
        f"  -1.000000 s  task child {task[:-1]}0 took 5 us, raised",
        f"  -0.900000 s  task f {task} did not end",
        f"  -0.800000 s  waited for child {task[:-1]}2, took 700 ms",
        "  -0.700000 s  checkpoint after 100 calls",
        "  -0.600000 s  lease on class 2 given back",
        "Last lines of its stderr:",
        "boom",
    ]


def test_a_limit_makes_it_a_timeout():
    error = read_crash(report(last=(7, 9, 0, 250), attempts=1, earlier=()), SESSION, NAMES.__getitem__)
    assert isinstance(error, TaskTimeoutError)
    assert error.timeout_s == 0.25
    assert str(error).startswith("The worker process (pid 7) was killed by fastray because of timeout_s=0.25 while")


def test_what_a_full_store_cut_off_is_not_there():
    error = read_crash(report(events=EVENTS)[:47], SESSION, NAMES.__getitem__)
    assert (error.pid, error.signal, error.attempts, error.task_id[-16:]) == (7, 9, 3, f"{TASK:016x}")
    assert (error.earlier, error.events, error.stderr_tail) == ([], [], "")


def test_attempts_that_were_forgotten_are_counted():
    error = read_crash(report(attempts=40, earlier=((5, 0, 3, 0),)), SESSION, NAMES.__getitem__)
    assert "Attempt 39: pid 5 exited with code 3." in str(error)


def test_events_of_a_newer_node_are_shown_as_numbers():
    (event,) = read_events(EVENT.pack(1, -1, 0, 4 << 9 | 99), SESSION, NAMES.__getitem__)
    assert event == ProcessEvent("event 99", 1e-9, None, "", "", False, 4)


def test_the_tail_of_stderr_loses_the_names_of_tasks():
    assert clean_tail("a\n\x1ef\x1fone\n\x1eg\x1ftwo") == "a\none\ntwo"
    assert clean_tail("ask\x1fone\n\x1eg\x1ftwo") == "one\ntwo"
    assert clean_tail("plain\n") == "plain\n"


def test_nothing_is_said_of_a_process_of_which_nothing_is_known():
    assert describe_process(0.0, 0, 0) == []
    assert str(Attempt(1, None, None)) == "died unexpectedly"
