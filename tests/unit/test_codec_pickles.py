"""What the codec leaves to pickle: references inside values, objects by value, and errors with a path."""

import os
import pickle
import subprocess
import sys
import textwrap
import threading

import pytest

from fastray._native import codec
from fastray.exceptions import SerializationError


def round_trip(value):
    return codec.loads(*codec.dumps(value))


# ---- references -------------------------------------------------------------------------------------


class FakeRef:
    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        index = codec.note_reference(self)
        if index < 0:
            raise TypeError("outside of a call")
        return codec.take_reference, (index,)


class Holder:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __eq__(self, other):
        return self.__dict__ == other.__dict__


@pytest.fixture(autouse=True)
def fake_ref_type():
    before = codec.register_ref_type(FakeRef)
    yield
    codec.register_ref_type(before)


def test_a_reference_as_an_argument_is_a_dependency():
    a, b = FakeRef("a"), FakeRef("b")
    data, dependencies, references, buffers = codec.dumps_call((a, 1), {"k": b})
    assert dependencies == [a, b]
    assert not references
    assert not buffers
    assert codec.loads_call(data, ["A", "B"]) == (("A", 1), {"k": "B"})
    assert codec.dumps_call_inline((a,), {}, 4096) is None


def test_references_inside_values_travel_as_references():
    a, b, c = FakeRef("a"), FakeRef("b"), FakeRef("c")
    data, dependencies, references, _ = codec.dumps_call(([a, {"k": b}], a), {"s": {c}})
    assert dependencies == [a]
    assert references == [a, b, c]
    args, kwargs = codec.loads_call(data, ["value of a"], references)
    assert args == ([a, {"k": b}], "value of a")
    assert kwargs == {"s": {c}}


def test_references_inside_pickled_objects():
    a, b = FakeRef("a"), FakeRef("b")
    value = Holder(x=[a], y={b}, again=a)
    data, references, buffers = codec.dumps(value)
    assert references == [a, b]
    back = codec.loads(data, references, buffers)
    assert back == value
    assert back.again is a


def test_a_top_level_reference_in_a_value_is_a_reference():
    a = FakeRef("a")
    data, references, _ = codec.dumps(a)
    assert codec.loads(data, references) is a


def test_references_are_counted_once_when_pickle_has_to_start_again():
    a = FakeRef("a")
    data, references, buffers = codec.dumps([a, Holder(ref=a), lambda: a])
    assert references == [a]
    back = codec.loads(data, references, buffers)
    assert back[0] is a
    assert back[1].ref is a
    assert back[2]() is a


def test_outside_of_an_encoding_there_is_no_encoder():
    assert codec.note_reference(FakeRef("a")) == -1
    with pytest.raises(SerializationError):
        codec.take_reference(0)
    with pytest.raises(TypeError):
        pickle.dumps(FakeRef("a"))


class Nests:
    """Its reducer encodes something else, as a reducer that calls put() would."""

    def __init__(self, ref, inner):
        self.ref, self.inner = ref, inner

    def __reduce__(self):
        encoded = codec.dumps({"inner": Holder(ref=self.inner)})
        return Nests.back, (self.ref, encoded[0], len(encoded[1]))

    @staticmethod
    def back(ref, data, count):
        return Nests(ref, codec.loads(data, [f"nested {i}" for i in range(count)])["inner"].ref)


def test_encoding_and_decoding_nest():
    a, b, c = FakeRef("a"), FakeRef("b"), FakeRef("c")
    value = Holder(first=a, nested=Nests(b, c), last=c)
    data, references, buffers = codec.dumps(value)
    assert references == [a, b, c]
    back = codec.loads(data, references, buffers)
    assert (back.first, back.nested.ref, back.nested.inner, back.last) == (a, b, "nested 0", c)


class Slow:
    """Lets other threads run in the middle of its own pickling."""

    def __init__(self, ref):
        self.ref = ref

    def __getstate__(self):
        pause.wait(0.002)
        return {"ref": self.ref}


pause = threading.Event()


def test_threads_do_not_see_each_others_encoders():
    wrong = []

    def work(name):
        for i in range(10):
            ref, last = FakeRef((name, i)), FakeRef((name, -i))
            data, references, buffers = codec.dumps([Slow(ref), {1}, Slow(last)])
            back = codec.loads(data, references, buffers)
            if references != [ref, last] or back[0].ref is not ref or back[2].ref is not last:
                wrong.append((name, i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# ---- pickling by value ------------------------------------------------------------------------------


def test_closures_lambdas_and_local_classes_go_by_value():
    def local(x):
        return x + base

    class Local:
        value = 4

    base = 10
    assert round_trip(local)(5) == 15
    assert round_trip([lambda: base])[0]() == 10
    assert round_trip(Local()).value == 4


def test_objects_of_main_arrive_in_a_process_with_another_main(tmp_path):
    writer = tmp_path / "writer.py"
    writer.write_text(
        textwrap.dedent(
            """
            import dataclasses, enum, functools, pickle, sys, typing
            from fastray._native import codec

            class Color(enum.Enum):
                RED = 1

            @dataclasses.dataclass
            class Point:
                x: int
                def double(self): return helper(self.x)

            def helper(x): return 2 * x
            T = typing.TypeVar("T")

            values = [Point(3), {"k": [Point(4)]}, helper, functools.partial(helper, 5), Color.RED,
                      Point(6).double, T]
            pickle.dump([codec.dumps(v)[0] for v in values], open(sys.argv[1], "wb"))
            """
        )
    )
    out = tmp_path / "out"
    subprocess.run([sys.executable, str(writer), str(out)], check=True, env=environment())
    point, inside, helper, partial, red, method, t = map(codec.loads, pickle.loads(out.read_bytes()))
    assert point.x == 3
    assert point.double() == 6
    assert inside["k"][0].x == 4
    assert helper(2) == 4
    assert partial() == 10
    assert red.name == "RED"
    assert method() == 12
    assert t.__name__ == "T"


def test_the_codec_does_not_import_numpy_or_cloudpickle():
    script = (
        "import sys; from fastray._native import codec; import fractions\n"
        "codec.loads(*codec.dumps([1, {'a': {2}}, fractions.Fraction(1, 2)]))\n"
        "assert 'numpy' not in sys.modules and 'cloudpickle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=environment())


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


# ---- errors -----------------------------------------------------------------------------------------


def test_an_unpicklable_argument_is_named_with_its_culprit():
    value = {"db": [1, threading.Lock()]}
    with pytest.raises(SerializationError) as caught:
        codec.dumps_call((1, value), {})
    assert caught.value.path == "argument 1['db'][1]"
    assert "argument 1['db'][1]" in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(SerializationError, match=r"database\[0\]"):
        codec.dumps_call((1,), {"other": 2, "database": [threading.Lock()]})


def test_after_an_error_the_encoder_is_as_new():
    a = FakeRef("a")
    for _ in range(3):
        with pytest.raises(SerializationError):
            codec.dumps_call(([a], a, b"x" * 70_000, threading.Lock()), {})
    assert codec.note_reference(a) == -1
    assert codec.loads_call(*codec.dumps_call((1,), {})) == ((1,), {})
