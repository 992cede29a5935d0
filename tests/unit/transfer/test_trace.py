"""What a trace notes of frames, and what it leaves to the link."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fastray.transfer import trace
from fastray.transfer.trace import FETCH, MESSAGE, RESULT, TASK, VALUE, Trace

RELEASE = 4  # of no interest
PAGE = Path(__file__).resolve().parents[3] / "docs/internals/remote_task.md"


def frame(kind, layout="", *fields):
    body = struct.pack("<" + layout, *fields)
    return struct.pack("<QQ", kind, len(body)) + body


def noted(made):
    return [{name: value for name, value in row.items() if name != "time_ns"} for row in made.rows()]


BATCH = b"".join(
    [
        frame(MESSAGE, "3s", b"abc"),
        frame(TASK, "Q5Q", 0x100000002, 0, 0, 0, 0, 0),
        frame(RESULT, "QIIIIII", 7, 4, 0xFFFFFFFF, 0, 0, 0, 0),
        frame(RELEASE, "QQ", 1, 1),
        frame(RESULT, "QIIQQQII", 8, 8, 0xFFFFFFFF, 1, 2, 3000, 0, 0),
        frame(FETCH, "QQ", 5, 6),
        frame(VALUE, "QQIIII", 6, 4, 0, 0, 1, 1),
    ]
)


def test_frames_become_events():
    made = Trace()
    made.sent(BATCH)
    assert noted(made) == [
        {"kind": "task_sent", "task": "0000000100000002"},
        {"kind": "result_sent", "task": f"{7:016x}", "state": "done"},
        {"kind": "result_sent", "task": f"{8:016x}", "state": "away", "remote": f"{2:016x}", "bytes": 3000},
        {"kind": "fetch_sent", "value": f"{6:016x}", "remote": f"{5:016x}"},
        {"kind": "value_sent", "value": f"{6:016x}", "bulk": True},
    ]
    assert {row["kind"] for row in made.rows()} <= set(trace.KINDS)
    times = [row["time_ns"] for row in made.rows()]
    assert times == sorted(times)


def test_what_comes_is_noted_up_to_the_message_that_python_handles_first():
    made = Trace()
    batch = frame(FETCH, "QQ", 1, 2) + frame(MESSAGE, "3s", b"abc") + frame(FETCH, "QQ", 3, 4)
    made.got(batch, 0)
    assert noted(made) == [{"kind": "fetch_got", "value": f"{2:016x}", "remote": f"{1:016x}"}]
    made.got(batch, len(frame(FETCH, "QQ", 1, 2) + frame(MESSAGE, "3s", b"abc")))
    assert noted(made)[1:] == [{"kind": "fetch_got", "value": f"{4:016x}", "remote": f"{3:016x}"}]


@pytest.mark.parametrize(
    "batch",
    [
        b"",
        b"\1",
        frame(TASK)[:-1],
        frame(TASK),
        frame(RESULT, "Q", 1),
        frame(RESULT, "QII", 8, 8, 0),
        frame(FETCH, "QQ", 1, 2)[:-1],
        frame(99),
        struct.pack("<QQ", VALUE, (1 << 64) - 1),
    ],
)
def test_bad_frames_are_left_to_the_link(batch):
    made = Trace()
    made.got(batch, 0)
    made.sent(batch)
    assert made.rows() == []


def test_every_cut_of_a_batch_is_survived():
    for end in range(len(BATCH)):
        Trace().sent(BATCH[:end])
        Trace().got(BATCH, end)


def test_the_youngest_events_are_kept():
    made = Trace()
    for i in range(trace.EVENTS_MAX + 10):
        made.note("routed", task=i)
    assert [row["task"] for row in made.rows()] == list(range(10, trace.EVENTS_MAX + 10))


@pytest.mark.parametrize(("given", "on"), [({}, False), ({trace.VARIABLE: "0"}, False), ({trace.VARIABLE: "1"}, True)])
def test_it_is_off_unless_asked_for(given, on):
    assert (trace.from_environment(given) is not None) == on


def test_the_page_names_every_kind_of_event():
    page = PAGE.read_text()
    assert [kind for kind in trace.KINDS if f"`{kind}`" not in page] == []
