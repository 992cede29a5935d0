"""What tasks print reaches the driver: with name and pid, in order, complete, each line once."""

from __future__ import annotations

import re

import pytest


@pytest.fixture
def logs_of(run_program):
    """Runs a program over a session of two CPUs; (lines of its stdout, lines of its stderr)."""

    def run(body, options="num_cpus=2", check=True):
        head = f"import os, sys, time, subprocess, fastray\nfastray.init({options})\n"
        done = run_program(head + body, check=check)
        return done.stdout.splitlines(), done.stderr.splitlines()

    return run


def test_a_line_says_which_task_and_process_printed_it(logs_of):
    out, err = logs_of(
        """
@fastray.remote
def speak(text):
    print(text)
    print("to stderr", file=sys.stderr)
    return os.getpid()
pid = fastray.get(speak.remote("hello"))
fastray.shutdown()
print("PID", pid)
"""
    )
    pid = next(line.split()[1] for line in out if line.startswith("PID"))
    assert f"(speak pid={pid}) hello" in out
    assert f"(speak pid={pid}) to stderr" in err
    assert not any("to stderr" in line for line in out)


def test_everything_printed_arrives_whole_and_in_order(logs_of):
    out, _ = logs_of(
        """
@fastray.remote
def speak(k):
    for i in range(3000):
        print(f"{k}:{i}:" + "x" * (i % 200))
fastray.get([speak.remote(k) for k in range(2)])
"""
    )
    lines = [re.fullmatch(r"\(speak pid=\d+\) (\d):(\d+):(x*)", line) for line in out]
    assert all(lines)
    for k in "01":
        mine = [(int(m[2]), len(m[3])) for m in lines if m[1] == k]
        assert mine == [(i, i % 200) for i in range(3000)]


def test_what_was_printed_just_before_the_end_is_not_lost(logs_of):
    out, _ = logs_of(
        """
@fastray.remote
def speak():
    print("one")
    print("two", end="")
fastray.get(speak.remote())
"""
    )
    assert [line.partition(") ")[2] for line in out] == ["one", "two"]


def test_what_a_task_printed_before_it_crashed_is_not_lost(logs_of):
    out, _ = logs_of(
        """
@fastray.remote(max_retries=0)
def speak():
    print("last words")
    os.kill(os.getpid(), 9)
try:
    fastray.get(speak.remote())
except fastray.exceptions.WorkerCrashedError:
    fastray.shutdown()  # all is printed now: two threads that print at once would mix their lines
    print("crashed")
"""
    )
    assert any(re.fullmatch(r"\(speak pid=\d+\) last words", line) for line in out)
    assert "crashed" in out


def test_text_of_subprocesses_and_c_code_arrives_too(logs_of):
    out, err = logs_of(
        """
@fastray.remote
def speak():
    os.write(1, b"by write\\n")
    subprocess.run(["echo", "by echo"])
    subprocess.run("echo by shell >&2", shell=True)
fastray.get(speak.remote())
"""
    )
    assert any(line.endswith(" by write") for line in out)
    assert any(line.endswith(" by echo") for line in out)
    assert any(line.endswith(" by shell") for line in err)


def test_logging_and_warnings_in_tasks_arrive(logs_of):
    _, err = logs_of(
        """
@fastray.remote
def speak():
    import logging, warnings
    logging.warning("by logging")
    warnings.warn("by warnings")
fastray.get(speak.remote())
"""
    )
    assert any("by logging" in line for line in err)
    assert any("by warnings" in line for line in err)


def test_names_follow_options_and_nested_tasks(logs_of):
    out, _ = logs_of(
        """
@fastray.remote
def inner():
    print("inside")
@fastray.remote
def outer():
    fastray.get(inner.options(name="renamed").remote())
    print("outside")
fastray.get(outer.remote())
"""
    )
    assert any(re.fullmatch(r"\(renamed pid=\d+\) inside", line) for line in out)
    assert any(re.fullmatch(r"\(outer pid=\d+\) outside", line) for line in out)


def test_the_same_line_of_several_workers_is_printed_once_and_counted(logs_of):
    out, _ = logs_of(
        """
@fastray.remote
def speak(others):
    print("the same")
    open(f"{others}{os.getpid()}", "w").close()
    while len([n for n in os.listdir(".") if n.startswith("met")]) < 4:
        time.sleep(0.003)
os.chdir(os.path.dirname(os.path.abspath(__file__)))
fastray.get([speak.options(num_cpus=0.5).remote(os.path.abspath("met")) for _ in range(4)]) if False else None
@fastray.remote(num_cpus=0.5)
def meet(folder):
    print("the same")
    open(f"{folder}/met{os.getpid()}", "w").close()
    while len([n for n in os.listdir(folder) if n.startswith("met")]) < 4:
        time.sleep(0.003)
fastray.get([meet.remote(os.getcwd()) for _ in range(4)])
"""
    )
    same = [line for line in out if "the same" in line]
    assert len(same) == 2
    assert "repeated 3x" in same[1]


def test_unicode_binary_rubbish_and_long_lines_do_no_harm(logs_of):
    out, _ = logs_of(
        """
@fastray.remote
def speak():
    print("grüße 🎈")
    sys.stdout.flush()
    os.write(1, b"\\xff\\xfe rubbish\\n")
    print("y" * 300_000)
fastray.get(speak.remote())
"""
    )
    assert any(line.endswith("grüße 🎈") for line in out)
    assert any("rubbish" in line for line in out)
    assert any(line.endswith("y" * 300_000) for line in out)


def test_log_to_driver_off_prints_nothing(logs_of):
    out, err = logs_of(
        """
speak = fastray.remote(lambda: print("hush"))
fastray.get([speak.remote() for _ in range(10)])
print("end")
""",
        options="num_cpus=2, log_to_driver=False",
    )
    assert out == ["end"]
    assert not err


def test_a_driver_without_output_and_one_whose_output_is_closed(logs_of):
    for close in ("sys.stdout = None", "sys.stdout = open(os.devnull, 'w')", "sys.stdout.close()"):
        logs_of(
            f"""
{close}
speak = fastray.remote(lambda: print("hello"))
fastray.get([speak.remote() for _ in range(10)])
fastray.shutdown()
""",
            check="close()" not in close,  # Python itself may complain at its end
        )


def test_print_of_the_driver_and_of_a_replaced_stream(logs_of):
    out, _ = logs_of(
        """
import contextlib, io
@fastray.remote
def speak():
    print("captured")
buffer = io.StringIO()
with contextlib.redirect_stdout(buffer):
    fastray.get(speak.remote())
    fastray.shutdown()
print(buffer.getvalue().strip())
"""
    )
    assert len(out) == 1
    assert re.fullmatch(r"\(speak pid=\d+\) captured", out[0])


def test_a_task_may_replace_its_own_streams(logs_of):
    out, _ = logs_of(
        """
@fastray.remote
def speak():
    import contextlib, io
    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer):
        print("inside")
    print("got", buffer.getvalue().strip())
    assert sys.stdout.encoding and not sys.stdout.isatty() and sys.stdin.read() == ""
fastray.get(speak.remote())
"""
    )
    assert [line.partition(") ")[2] for line in out] == ["got inside"]
