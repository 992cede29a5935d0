"""Tasks and actors of the kill matrix: they say where they are and stay there to be killed, the first time.

    folder   of one run: files in it tell a second attempt from the first
    door     a FIFO in it: who has come to the moment to be killed writes its pid there

Imported by the workers; the driver's side is kill_rows.py.
"""

from __future__ import annotations

import os
import signal

import fastray

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

DOOR = "door"
OWNED_BYTES = 200_000


def is_first(folder: str, what: str) -> bool:
    """True once for each `what`."""
    try:
        os.close(os.open(os.path.join(folder, what), os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


def count_up(folder: str, what: str) -> int:
    """How often it was called for `what`, this time included."""
    number = 1
    while not is_first(folder, f"{what}{number}"):
        number += 1
    return number


def say_pid(folder: str) -> None:
    """Tells the driver that this process is where it is to be killed."""
    fd = os.open(os.path.join(folder, DOOR), os.O_WRONLY)
    try:
        os.write(fd, b"%d\n" % os.getpid())
    finally:
        os.close(fd)


def stay(folder: str) -> None:
    """Says so and waits for the end."""
    say_pid(folder)
    while True:
        signal.pause()


# ---- tasks ---------------------------------------------------------------------------------------------


@fastray.remote
def square(x: int) -> int:
    return x * x


def spin(x: int) -> int:
    """Some 20 us of work; `x`."""
    sum(range(1500))
    return x


spin_task = fastray.remote(spin)


@fastray.remote
def stay_once(folder: str, x: int) -> int:
    """Stays in its first attempt; `x` in the second."""
    if is_first(folder, "stay"):
        stay(folder)
    return x


@fastray.remote
def stay_for_ever(folder: str) -> None:
    stay(folder)


@fastray.remote
def own_pid(folder: str) -> None:
    say_pid(folder)


@fastray.remote
def large(i: int, size: int) -> bytes:
    return bytes([i % 251]) * size


@fastray.remote
def numbers(folder: str, n: int, stay_at: int) -> Iterator[int]:
    """0 to n - 1; stays before item `stay_at` in its first attempt."""
    for i in range(n):
        if i == stay_at and is_first(folder, "stay"):
            stay(folder)
        yield i


@fastray.remote
def gated(folder: str, x: int) -> int:
    """Waits for a line in the FIFO "gate" of the folder."""
    gate = os.open(os.path.join(folder, "gate"), os.O_RDONLY)
    try:
        os.read(gate, 1)
    finally:
        os.close(gate)
    return x


@fastray.remote
def parent(folder: str, x: int) -> int:
    """Blocks in get; its child waits for the gate in its first attempt."""
    if is_first(folder, "parent"):
        child = gated.remote(folder, x)
        say_pid(folder)
    else:
        child = square.remote(x)
    value: int = fastray.get(child)
    return value


@fastray.remote
def owner(folder: str, n: int, done: bool) -> list[Any]:
    """Tasks of its own: `n` squares, or `n` that wait for the gate."""
    refs = [square.remote(i) if done else gated.remote(folder, i) for i in range(n)]
    refs.append(fastray.put(b"x" * OWNED_BYTES))
    if done:
        fastray.wait(refs, num_returns=n)
    say_pid(folder)
    return refs


_kept: list[Any] = []


@fastray.remote
def keep(folder: str, box: list[Any]) -> int:
    """Keeps a reference that was sent to it, for as long as its process lives."""
    _kept.append(box)
    say_pid(folder)
    return len(fastray.get(box[0]))


@fastray.remote
def caller(folder: str, actor: Any, n: int) -> int:
    """Calls the actor `n` times; stays after that in its first attempt. The number of right answers."""
    refs = [actor.echo.remote(i) for i in range(n)]
    if is_first(folder, "caller"):
        stay(folder)
    return sum(value == i for i, value in enumerate(fastray.get(refs)))


# ---- actors --------------------------------------------------------------------------------------------


class Counter:
    """Counts; `stay_at` are the numbers of the starts in whose constructor it stays."""

    def __init__(self, folder: str, stay_at: tuple[int, ...] = ()) -> None:
        self.folder = folder
        self.count = 0
        if count_up(folder, "start") in stay_at:
            stay(folder)

    def add(self, n: int) -> int:
        self.count += n
        return self.count

    def echo(self, x: int) -> int:
        return x

    def spin(self, x: int) -> int:
        return spin(x)

    def spin_and_add(self, n: int) -> int:
        return self.add(spin(n))

    def add_and_stay(self, n: int) -> int:
        self.count += n
        if is_first(self.folder, "call"):
            stay(self.folder)
        return self.count


class Saved(Counter):
    """The same with checkpoints; stays once in its save number `save_at`, and in its first restore if `in_restore`."""

    def __init__(self, folder: str, save_at: int = 0, in_restore: bool = False) -> None:
        super().__init__(folder)
        self.save_at, self.in_restore = save_at, in_restore
        self.saves = 0

    def __fastray_save__(self) -> tuple[int, int]:
        self.saves += 1
        if self.saves == self.save_at and is_first(self.folder, "save"):
            stay(self.folder)
        return self.count, self.saves

    def __fastray_restore__(self, state: tuple[int, int]) -> None:
        self.count, self.saves = state
        if self.in_restore and is_first(self.folder, "restore"):
            stay(self.folder)
