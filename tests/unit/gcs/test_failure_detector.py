"""The failure detector: closed connections, silence, and its own pauses, on a clock that the test moves."""

from __future__ import annotations

import pytest

from fastray.gcs.failure_detector import CHECK_EVERY_S, RETURN_S, FailureDetector


class Time:
    """Checks as often as the server does, until something is found."""

    def __init__(self, detector: FailureDetector) -> None:
        self.detector = detector
        self.now = 100.0

    def run(self, seconds: float, beats: bytes = b"") -> list[tuple[bytes, float]]:
        gone, end = [], self.now + seconds
        while self.now < end:
            self.now += CHECK_EVERY_S
            if beats:
                self.detector.beat(beats, self.now)
            gone += [(member, round(self.now, 3)) for member, _ in self.detector.check(self.now)]
        return gone


@pytest.fixture
def time():
    return Time(FailureDetector())


def test_a_closed_connection_is_a_death_within_a_second(time):
    time.detector.opened(b"n")
    time.detector.watch(b"n", time.now, beats=True)
    assert time.run(1, beats=b"n") == []
    time.detector.closed(b"n", time.now)
    ((member, when),) = time.run(3, beats=b"n")
    assert member == b"n"
    assert when - 101 <= 1


def test_who_comes_back_in_time_lives(time):
    time.detector.opened(b"d")
    time.detector.watch(b"d", time.now, beats=False)
    time.detector.closed(b"d", time.now)
    time.run(0.3)
    time.detector.opened(b"d")
    assert time.run(100) == []  # a driver need not send heartbeats
    time.detector.opened(b"d")  # a second stream, before the first one is seen to close
    time.detector.closed(b"d", time.now)
    assert time.run(100) == []


def test_silence_is_a_death_within_three_seconds(time):
    time.detector.opened(b"n")
    time.detector.watch(b"n", time.now, beats=True)
    time.run(10, beats=b"n")
    last = time.now
    ((member, when),) = time.run(5)
    assert member == b"n"
    assert 2 < when - last <= 3


def test_its_own_pause_is_nobodys_silence(time):
    for member in (b"n", b"m"):
        time.detector.opened(member)
        time.detector.watch(member, time.now, beats=True)
    time.run(1, beats=b"n")
    time.now += 60  # this process was stopped
    assert time.run(1, beats=b"n") == []
    assert [member for member, _ in time.run(5, beats=b"n")] == [b"m"]


def test_members_of_an_earlier_server_get_time_to_return(time):
    time.detector.watch(b"n", time.now, beats=True, returning=True)
    time.detector.watch(b"d", time.now, beats=False, returning=True)
    time.run(RETURN_S / 2)
    time.detector.opened(b"d")
    ((member, _),) = time.run(RETURN_S)
    assert member == b"n"


def test_who_is_forgotten_or_unknown_is_nobodys_death(time):
    time.detector.opened(b"x")
    time.detector.closed(b"x", time.now)
    time.detector.watch(b"n", time.now, beats=True)
    time.detector.forget(b"n")
    assert time.run(100) == []
