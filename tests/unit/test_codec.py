"""The codec: what comes back is what went in, of exactly the same type, from any bytes, at any size."""

import collections
import enum
import fractions
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastray._native import codec
from fastray.exceptions import SerializationError

PICKLED_OUT_OF_BAND = 65536


def round_trip(value):
    return codec.loads(*codec.dumps(value))


def is_native(value):
    return codec.dumps_inline(value, 1 << 16) is not None


def same(a, b):
    """Equal, of the same types all the way down, and NaN is NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    return a == b


scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats()
    | st.text(st.characters()) | st.binary()
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers(), st.text()), inner)
    ),
    max_leaves=30,
)


# ---- native values ----------------------------------------------------------------------------------


@given(values)
@settings(max_examples=300, deadline=None)
def test_any_native_value_round_trips_with_its_types(value):
    assert same(round_trip(value), value)


@given(values, st.integers(0, 64))
@settings(max_examples=200, deadline=None)
def test_inline_and_encoder_write_the_same_bytes_or_inline_declines(value, cap):
    inline = codec.dumps_inline(value, cap)
    if inline is not None:
        assert len(inline) <= cap
        assert inline == codec.dumps(value)[0]


@pytest.mark.parametrize("bits", [6, 7, 8, 15, 29, 30, 31, 32, 59, 60, 61, 62, 63, 64, 65, 1000, 10_000])
def test_integers_at_every_boundary(bits):
    for value in (2**bits - 1, 2**bits, 2**bits + 1):
        assert same(round_trip(value), value)
        assert same(round_trip(-value), -value)


def test_small_integers_take_two_bytes_and_a_call_of_one_takes_three():
    assert len(codec.dumps_inline(7, 48)) == 2
    assert len(codec.dumps_call_inline((7,), {}, 32)) == 3
    assert codec.dumps_call_inline((7,), {}, 2) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.0, 5e-324])
def test_odd_floats(value):
    assert same(round_trip(value), value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "é",
        "ab",
        "\x00",
        "héllo",
        "日本",
        "😀" * 9,
        "a" * 70_000,
        "é" * 70_000,
        "x\ud800y",
        "\ud800" * 70_000,
    ],
)
def test_text_of_every_width(text):
    assert same(round_trip(text), text)
    assert same(round_trip([text]), [text])


def test_surrogates_are_left_to_pickle():
    assert not is_native("\ud800")
    assert is_native("\U0001f600")


@pytest.mark.parametrize("size", [0, 1, 127, 128, 4096, 65535, 65536, 1_000_000])
def test_bytes_of_every_size(size):
    value = random.Random(size).randbytes(size)
    data, _references, buffers = codec.dumps(value)
    assert round_trip(value) == value
    assert (len(buffers) == 1) == (size >= PICKLED_OUT_OF_BAND)
    if buffers:
        assert buffers[0] is value
        assert len(data) < 10


def test_large_bytearrays_and_text_are_out_of_band():
    array = bytearray(100_000)
    data, _, buffers = codec.dumps(array)
    assert len(data) < 10
    assert buffers[0] is array
    assert same(round_trip(array), array)
    assert len(codec.dumps("z" * 100_000)[0]) < 10


def test_small_bytearrays_stay_bytearrays():
    assert same(round_trip(bytearray(b"abc")), bytearray(b"abc"))


def test_a_large_pickle_is_itself_a_buffer():
    value = {str(i): {i} for i in range(20_000)}
    data, _, buffers = codec.dumps(value)
    assert len(data) < 20
    assert len(buffers) == 1
    assert round_trip(value) == value


# ---- exact types ------------------------------------------------------------------------------------


class IntChild(int):
    pass


class StrChild(str):
    pass


class ListChild(list):
    pass


class DictChild(dict):
    pass


class Color(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [
        IntChild(5), StrChild("s"), ListChild([1]), DictChild(a=1), Color.RED, Point(1, 2),
        {1, 2}, frozenset([3]), collections.OrderedDict(a=1), collections.Counter("aab"),
        fractions.Fraction(1, 3), 1j, range(5), slice(1, 2), int, Color, ...,
        np.int64(3), np.float64(1.5), np.bool_(True), np.str_("s"), np.datetime64("2020-01-01"),
    ],
    ids=repr,
)  # fmt: skip
def test_everything_else_keeps_its_exact_type(value):
    for outer in (value, [value], {"k": value}, (value, 1)):
        back = round_trip(outer)
        assert back == outer
        assert type(back) is type(outer)
    assert type(round_trip(value)) is type(value)
    assert type(round_trip([value])[0]) is type(value)


# ---- identity, recursion, depth ---------------------------------------------------------------------


def test_an_aliased_list_stays_aliased():
    inner = [1]
    back = round_trip([inner, inner])
    assert back == [[1], [1]]
    assert back[0] is back[1]


@pytest.mark.parametrize(
    "make", [list, lambda: {"k": 1}, lambda: bytearray(100_000), lambda: np.arange(1000)]
)
def test_aliases_survive_at_any_distance(make):
    inner = make()
    back = round_trip({"a": inner, "b": ([{"c": inner}],)})
    assert back["a"] is back["b"][0][0]["c"]


def test_many_mutables_held_elsewhere_still_keep_aliases():
    kept = [[i] for i in range(50)]
    back = round_trip([*kept, kept[49]])
    assert back[49] is back[50]
    assert back[:50] == kept


def test_a_list_that_somebody_else_holds_is_still_native():
    inner, other = [1], {"k": 2}
    assert is_native({"a": inner, "b": other})


def test_values_that_contain_themselves():
    loop = [1]
    loop.append(loop)
    back = round_trip(loop)
    assert back[0] == 1
    assert back[1] is back
    table = {}
    table["me"] = [table]
    assert (lambda t: t["me"][0] is t)(round_trip(table))
    deep = []
    deep.append({"k": (deep,)})
    assert (lambda d: d[0]["k"][0] is d)(round_trip((deep,))[0])


@pytest.mark.parametrize("depth", [50, 99, 100, 101, 150])
@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"k": v}])
def test_nesting_below_and_above_the_native_limit(depth, wrap):
    value = 1
    for _ in range(depth):
        value = wrap(value)
    back = round_trip(value)
    for _ in range(depth):
        assert type(back) is type(value)
        back = back["k"] if isinstance(back, dict) else back[0]
    assert back == 1


def test_nesting_too_deep_for_pickle_is_an_error_not_a_crash():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(SerializationError):
        codec.dumps(value)


def test_shared_tuples_do_not_blow_up():
    value = ()
    for _ in range(60):
        value = (value, value)
    data, _, _ = codec.dumps(value)
    assert len(data) < 10_000
    text = "x" * 20_000
    assert len(codec.dumps([text] * 1000)[0]) < 100_000
    blob = b"y" * 100_000
    assert len(codec.dumps([blob] * 1000)[2]) == 1


# ---- calls ------------------------------------------------------------------------------------------


@given(st.lists(values, max_size=5), st.dictionaries(st.text(min_size=1), values, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_call_round_trips(args, kwargs):
    back_args, back_kwargs = codec.loads_call(*codec.dumps_call(tuple(args), kwargs))
    assert same(list(back_args), args)
    assert same(back_kwargs, kwargs)


def test_calls_of_every_length():
    for count in (0, 1, 62, 63, 64, 65, 127, 128, 1000):
        args = tuple(range(count))
        kwargs = {f"k{i}": i for i in range(count)}
        assert codec.loads_call(*codec.dumps_call(args, {})) == (args, {})
        assert codec.loads_call(*codec.dumps_call(args, kwargs)) == (args, kwargs)
        if count < 60:
            assert codec.dumps_call(args, kwargs)[0] == codec.dumps_call_inline(args, kwargs, 4096)


def test_keyword_names_of_many_calls_do_not_mix():
    for i in range(2000):
        kwargs = {f"name_{i}": 1, f"other_{i}": 2, f"name_{i}_long_enough_to_be_odd": 3}
        assert codec.loads_call(codec.dumps_call((), kwargs)[0]) == ((), kwargs)


def test_dict_keys_of_every_length_and_many_of_them():
    value = {chr(97 + i % 26) * (i % 50) + str(i): i for i in range(3000)}
    assert same(round_trip(value), value)
    assert same(round_trip(value), value)
