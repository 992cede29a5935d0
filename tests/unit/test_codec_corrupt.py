"""Bytes that make no sense raise SerializationError or decode to something; they never crash."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastray._native import codec
from fastray.exceptions import SerializationError


class Ref:
    pass


@pytest.fixture(autouse=True)
def ref_type():
    before = codec.register_ref_type(Ref)
    yield
    codec.register_ref_type(before)


def fuzz_corpus():
    big = np.arange(100)
    return [
        codec.dumps_call((7,), {}),
        codec.dumps_call(
            (1, "text", b"bytes", 2.5, None, True), {"alpha": [1, 2], "beta": {"k": (1, 2**80)}}
        ),
        codec.dumps_call(({"a": np.arange(4.0)}, [big], "é"), {"é": {"x": {"y": [[]]}}}),
        codec.dumps_call((b"x" * 70_000, "t" * 70_000), {}),
        codec.dumps_call((Ref(), [Ref()]), {}),
    ]


@pytest.mark.parametrize("number", range(5))
def test_mutated_bytes_raise_or_decode_but_never_crash(number):
    data, dependencies, references, buffers = fuzz_corpus()[number]
    rng = random.Random(number)
    raised = 0
    for _ in range(6000):
        mutated = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.choice(
                (rng.randrange(256), rng.randrange(23), 255, 127)
            )
        if 21 in mutated or 22 in mutated:
            continue  # would be a pickle: those are as trustworthy as their sender
        try:
            codec.loads_call(bytes(mutated), dependencies, references, buffers)
        except SerializationError:
            raised += 1
    assert raised


@given(st.binary(max_size=60))
@settings(max_examples=500, deadline=None)
def test_random_bytes_raise_or_decode_but_never_crash(data):
    data = data.replace(b"\x15", b"").replace(b"\x16", b"")
    try:
        codec.loads_call(data, [], [], [])
    except SerializationError:
        pass


def test_every_truncation_raises():
    data, _, _, _ = codec.dumps_call((1, "text", [2.5, {"k": 2**80}]), {"name": b"bytes"})
    for n in range(len(data)):
        with pytest.raises(SerializationError):
            codec.loads_call(data[:n])


def test_a_length_beyond_the_end_allocates_nothing():
    for tag in range(7, 23):
        if tag == 8:
            continue  # a float has no length
        with pytest.raises(SerializationError):
            codec.loads(bytes([tag]) + b"\xff\xff\xff\xff\xff\xff\xff\x7f", [], [])


def test_nesting_bombs_are_refused():
    with pytest.raises(SerializationError):
        codec.loads(b"\x0d\x01" * 100_000 + b"\x01")
