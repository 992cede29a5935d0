"""numpy arrays through the codec: any dtype and layout, no copy of large ones, read-only on arrival."""

import numpy as np
import pytest

from fastray import serialization
from fastray._native import codec
from fastray.exceptions import SerializationError

DTYPES = [
    "?", "i1", "u1", "i2", "<i4", ">i4", "i8", "u8", "f2", "f4", "f8", ">f8", "g", "c8", "c16", "S5", "U3",
    ">U3", "M8[ns]", "M8[D]", "m8[us]", ">M8[s]",
]  # fmt: skip


def round_trip(value, **options):
    return codec.loads(*codec.dumps(value), **options)


def check(array):
    back = round_trip(array)
    assert type(back) is type(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert not back.flags.writeable
    return back


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (3, 0, 2), (400,), (20, 30), (2, 3, 4, 5)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_dtype_shape_and_order(dtype, shape, order):
    count = int(np.prod(shape))
    array = np.array(np.arange(count) % 2, dtype="i8").astype(dtype).reshape(shape, order=order)
    back = check(array)
    assert back.flags.f_contiguous == array.flags.f_contiguous
    assert back.flags.c_contiguous == array.flags.c_contiguous


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(50, dtype=[("a", "<i4"), ("b", "f8", (2,))]),
        np.zeros(3, dtype=[("a", "O"), ("b", "i4")]),
        np.array([1, "two", None, [3]], dtype=object),
        np.zeros(4, dtype="V7"),
        np.array(["a", "bcd"], dtype=np.dtypes.StringDType()),
        np.arange(6).view(type("Sub", (np.ndarray,), {})),
        np.ma.masked_array([1, 2, 3], mask=[0, 1, 0]),
        np.rec.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]),
    ],
    ids=lambda a: f"{type(a).__name__}-{a.dtype}",
)
def test_other_arrays_are_left_to_pickle_and_keep_type_and_dtype(array):
    back = round_trip(array)
    assert type(back).__name__ == type(array).__name__
    assert back.dtype == array.dtype
    assert repr(back) == repr(array)


def test_metadata_of_a_dtype_survives():
    array = np.arange(3, dtype=np.dtype("i4", metadata={"unit": "m"}))
    plain = np.arange(3, dtype="i4")
    assert round_trip(array).dtype.metadata == {"unit": "m"}
    assert round_trip(plain).dtype.metadata is None


def test_arrays_that_are_not_contiguous():
    base = np.arange(1000).reshape(10, 100)
    for array in (base[:, ::3], base[::-1], base.T[5:], np.broadcast_to(np.arange(5), (100, 5)), base[2, 5:]):
        assert check(array).tolist() == array.tolist()


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_are_neither_copied_out_nor_in(order):
    array = np.zeros((300, 400), order=order)
    data, _, buffers = codec.dumps(array)
    assert len(data) < 20
    assert len(buffers) == 1
    view = memoryview(buffers[0])
    assert np.shares_memory(np.asarray(view), array)
    back = codec.loads(data, [], buffers)
    assert np.shares_memory(back, array)
    assert not back.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        back[0, 0] = 1
    array[1, 2] = 7
    assert back[1, 2] == 7


def test_every_buffer_can_be_taken_as_plain_bytes():
    arrays = [np.arange(1000).astype(d) for d in ("M8[s]", "f4")] + [np.ones((50, 50), order="F")]
    for value in (*arrays, {"objects": {1}, "arrays": arrays}, bytearray(100_000)):
        data, references, buffers = codec.dumps(value)
        assert buffers
        copies = [bytes(memoryview(b).cast("B") if memoryview(b).ndim else b) for b in buffers]
        again = codec.loads(data, references, copies)
        if isinstance(value, np.ndarray):
            assert (again == value).all()


def test_small_arrays_are_inline_and_read_only_like_large_ones():
    for size in (1, 32, 33, 5000):
        array = np.arange(size)
        assert (len(codec.dumps(array)[2]) == 0) == (array.nbytes <= 256)
        assert not round_trip(array).flags.writeable
        inside = round_trip({"a": array, "b": {1}})["a"]  # pickled whole
        assert not inside.flags.writeable
        assert (inside == array).all()


def test_writable_on_request():
    for size in (4, 5000):
        array = np.arange(size)
        data, references, buffers = codec.dumps(array)
        back = codec.loads(data, references, [bytearray(b) for b in buffers], writable=True)
        back[0] = 99
        assert back[0] == 99
        assert array[0] == 0


def test_arrays_inside_containers_are_native_and_share_nothing_with_pickle():
    value = {"x": np.arange(1000), "y": [np.arange(3), np.ones((40, 40))]}
    data, _, buffers = codec.dumps(value)
    assert b"numpy" not in data
    assert len(buffers) == 2
    back = codec.loads(data, [], buffers)
    assert (back["x"] == value["x"]).all()
    assert (back["y"][1] == 1).all()


def test_a_serializer_for_arrays_wins_over_the_native_form():
    serialization.register_serializer(np.ndarray, serializer=np.ndarray.tolist, deserializer=tuple)
    try:
        assert round_trip(np.arange(3)) == (0, 1, 2)
        assert round_trip([np.arange(3)]) == [(0, 1, 2)]
    finally:
        serialization.deregister_serializer(np.ndarray)
    assert isinstance(round_trip(np.arange(3)), np.ndarray)


def test_corrupt_arrays_raise():
    data, _, _buffers = codec.dumps(np.arange(100))
    with pytest.raises(SerializationError):
        codec.loads(data, [], [])
    with pytest.raises(SerializationError):
        codec.loads(data, [], [b"too short"])
    for bad in (b"|O", b"<i9", b"i4,O"):
        with pytest.raises(SerializationError):
            codec.loads(b"\x14\x00\x01\x02" + bytes([len(bad)]) + bad + b"\x00", [], [b"0123456789012345"])
