"""What a task prints: the worker's streams, the driver's printer, and both together over a pipe."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from fastray import logs
from fastray.logs import LogPrinter, TaskStream


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def screen():
    class Screen:
        out, err, clock = io.StringIO(), io.StringIO(), Clock()

        def lines(self):
            return self.out.getvalue().splitlines()

    made = Screen()
    made.printer = LogPrinter(stdout=made.out, stderr=made.err, clock=made.clock)
    return made


def record(name, text):
    return logs.RECORD + name.encode() + logs.NAME_END + text


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_the_stream_marks_whole_lines_with_the_task(pipe):
    reader, writer = pipe
    stream = TaskStream(writer, lambda: "f")
    print("one", "two", file=stream)
    print("half", end="", file=stream)
    assert os.read(reader, 1000) == record("f", b"one two\n")
    stream.flush()
    assert os.read(reader, 1000) == record("f", b"half")
    assert not stream.isatty()
    assert stream.fileno() == writer
    assert stream.encoding == "utf-8"


def test_a_line_belongs_to_the_task_that_began_it(pipe):
    reader, writer = pipe
    names = iter(["f", "g"])
    stream = TaskStream(writer, lambda: next(names))
    stream.write("be")
    stream.write("gun\n")
    stream.write("a\nb\n")
    assert os.read(reader, 1000) == record("f", b"begun\n") + record("g", b"a\n") + record("g", b"b\n")


def test_bytes_surrogates_and_marks_in_the_text_do_no_harm(pipe):
    reader, writer = pipe
    stream = TaskStream(writer, lambda: "n\x1e\x1f\nm")
    stream.buffer.write(b"\xff\x1e raw\n")
    stream.write("\udc80\n")
    assert os.read(reader, 1000) == record("n m", b"\xff raw\n") + record("n m", b"\\udc80\n")
    with pytest.raises(TypeError, match="must be str, not bytes"):
        stream.write(b"x")


def test_text_without_end_is_written_in_parts(pipe, monkeypatch):
    monkeypatch.setattr(logs, "LINE_BYTES_MAX", 10)
    reader, writer = pipe
    stream = TaskStream(writer, lambda: "f")
    stream.write("x" * 11)
    assert os.read(reader, 1000) == record("f", b"x" * 11)


def test_lines_show_name_and_pid_on_the_stream_they_were_written_to(screen):
    screen.printer.feed(7, "stdout", record("f", b"hello\n") + b"from a library\n")
    screen.printer.feed(7, 2, record("f", b"trouble\n"))
    assert screen.lines() == ["(f pid=7) hello", "(pid=7) from a library"]
    assert screen.err.getvalue() == "(f pid=7) trouble\n"


@pytest.mark.parametrize("cut", range(1, 24))
def test_chunks_may_be_cut_anywhere(screen, cut):
    data = record("name", b"h\xc3\xa9llo\n") + record("g", b"w\n") + b"raw\n"
    for start in range(0, len(data), cut):
        screen.printer.feed(7, "stdout", data[start : start + cut])
    assert screen.lines() == ["(name pid=7) héllo", "(g pid=7) w", "(pid=7) raw"]


def test_sources_do_not_mix(screen):
    screen.printer.feed(1, "stdout", record("f", b"a"))
    screen.printer.feed(2, "stdout", record("g", b"b\n"))
    screen.printer.feed(1, "stdout", record("f", b"c\n"))
    assert screen.lines() == ["(g pid=2) b", "(f pid=1) ac"]


def test_nodes_do_not_mix(screen):
    screen.printer.feed(1, "stdout", record("f", b"a"))
    screen.printer.feed(1, "stdout", record("f", b"b"), "10.0.0.2")
    for host in ("", "10.0.0.2"):
        screen.printer.feed(1, "stdout", record("f", b"c\n") + record("f", b"same\n"), host)
    assert screen.lines() == ["(f pid=1) ac", "(f pid=1) same", "(f pid=1, ip=10.0.0.2) bc"]
    screen.printer.close()
    assert screen.lines()[3:] == ["(f pid=1, ip=10.0.0.2) same"]  # of another worker: it was held back


def test_a_partial_line_ends_with_time_death_close_or_another_task(screen):
    screen.printer.feed(1, "stdout", record("f", b"Enter: "))
    assert screen.printer.tick() == pytest.approx(logs.PARTIAL_WAIT_S)
    assert screen.lines() == []
    screen.clock.now_s += logs.PARTIAL_WAIT_S
    screen.printer.tick()
    screen.printer.feed(1, "stdout", record("f", b"half") + record("g", b"other\n"))
    screen.printer.feed(1, "stdout", record("g", b"last words"))
    screen.printer.forget(1)
    screen.printer.feed(2, "stdout", b"\x1ehalf a name")
    screen.printer.close()
    assert screen.lines() == [
        "(f pid=1) Enter: ",
        "(f pid=1) half",
        "(g pid=1) other",
        "(g pid=1) last words",
        "(pid=2) half a name",
    ]


def test_an_idle_printer_asks_for_no_wake_up(screen):
    assert screen.printer.tick() is None
    screen.printer.feed(1, "stdout", b"x\n")
    assert screen.printer.tick() == pytest.approx(logs.DEDUP_WINDOW_S)
    screen.clock.now_s += logs.DEDUP_WINDOW_S
    assert screen.printer.tick() is None


def test_the_same_line_from_many_workers_is_counted(screen):
    for pid in range(5):
        screen.printer.feed(pid, "stdout", record("f", b"loading\n"))
    assert screen.lines() == ["(f pid=0) loading"]
    screen.clock.now_s += logs.DEDUP_WINDOW_S
    assert screen.printer.tick() == pytest.approx(logs.DEDUP_WINDOW_S)
    assert screen.lines()[1:] == ["(f pid=4) loading [repeated 4x across cluster]"]
    screen.printer.feed(9, "stdout", record("f", b"loading\n"))
    screen.printer.close()
    assert screen.lines()[2:] == ["(f pid=9) loading"]


def test_one_worker_that_repeats_itself_is_not_counted(screen):
    for _ in range(3):
        screen.printer.feed(1, "stdout", record("f", b"tick\n"))
    screen.printer.feed(1, "stderr", record("f", b"tick\n"))
    assert screen.lines() == ["(f pid=1) tick"] * 3
    assert screen.err.getvalue() == "(f pid=1) tick\n"


def test_lines_that_differ_in_a_digit_or_are_empty_are_all_printed(screen):
    for pid in range(3):
        screen.printer.feed(pid, "stdout", record("f", b"loss %d\n\n" % pid))
    assert len(screen.lines()) == 6


def test_repeats_can_be_left_alone_and_are_bounded(screen, monkeypatch):
    plain = LogPrinter(dedup=False, stdout=screen.out, clock=screen.clock)
    for pid in range(3):
        plain.feed(pid, "stdout", record("f", b"loading\n"))
    assert len(screen.lines()) == 3
    assert plain.tick() is None
    monkeypatch.setattr(logs, "REPEATS_MAX", 2)
    for text in (b"a\n", b"b\n"):
        for pid in (1, 2, 3):
            screen.printer.feed(pid, "stdout", record("f", text))
    screen.printer.feed(1, "stdout", record("f", b"c\n"))
    assert screen.lines()[3:] == [
        "(f pid=1) a",
        "(f pid=1) b",
        "(f pid=3) a [repeated 2x across cluster]",
        "(f pid=1) c",
    ]


def test_a_progress_bar_shows_its_last_state(screen):
    for percent in (10, 50, 100):
        screen.printer.feed(1, "stdout", record("f", b"\r%d%%" % percent))
        screen.printer.tick()
    assert screen.lines() == []
    screen.clock.now_s += 60
    screen.printer.feed(1, "stdout", record("f", b"\r101%"))
    assert screen.lines() == ["(f pid=1) 101%"]
    screen.printer.feed(1, "stdout", record("f", b"\rdone\r\n"))
    assert screen.lines() == ["(f pid=1) 101%", "(f pid=1) done"]


def test_a_progress_bar_moves_in_place_on_a_terminal():
    clock, out = Clock(), Terminal()
    printer = LogPrinter(stdout=out, clock=clock)
    for percent in (10, 50):
        clock.now_s += 1
        printer.feed(1, "stdout", record("f", b"\r%d%%" % percent))
    printer.feed(2, "stdout", record("g", b"line\n"))
    prefix = "\x1b[36m(f pid=1)\x1b[0m"
    assert out.getvalue() == (f"\r{prefix} 10%\x1b[K\r{prefix} 50%\x1b[K\n\x1b[36m(g pid=2)\x1b[0m line\n")


def test_streams_that_were_replaced_closed_or_ascii_only(capsys, monkeypatch):
    printer = LogPrinter(dedup=False)
    printer.feed(1, "stdout", b"captured\n")
    assert capsys.readouterr().out == "(pid=1) captured\n"
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    printer.feed(1, "stdout", "é\n".encode())
    assert narrow.buffer.getvalue() == b"(pid=1) \\xe9\n"
    closed = io.StringIO()
    closed.close()
    for gone in (closed, None):
        monkeypatch.setattr(sys, "stdout", gone)
        printer.feed(1, "stdout", b"nobody sees this\n")


def test_non_utf8_bytes_are_shown_escaped(screen):
    screen.printer.feed(1, "stdout", b"\xff\xfe!\n")
    assert screen.lines() == ["(pid=1) \\xff\\xfe!"]


WORKER = """
import os, sys
from fastray.logs import install_task_streams
task = ["f"]
out, err = install_task_streams(lambda: task[0])
print("hello")
print("oops", file=sys.stderr)
os.write(1, b"raw\\n")
print("pending", end="")
if os.fork() == 0:
    print("from a child"); sys.stdout.flush(); os._exit(0)
os.wait()
task[0] = ""
print(" ends")
sys.stdout.write("no newline at exit")
"""


def test_a_process_end_to_end(screen):
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, timeout=60, check=True)
    screen.printer.feed(7, "stdout", done.stdout)
    screen.printer.feed(7, "stderr", done.stderr)
    screen.printer.close()
    assert screen.lines() == [
        "(f pid=7) hello",
        "(pid=7) raw",
        "(f pid=7) from a child",
        "(f pid=7) pending ends",
        "(pid=7) no newline at exit",
    ]
    assert screen.err.getvalue() == "(f pid=7) oops\n"
