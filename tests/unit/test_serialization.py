"""Pickling outside of the hot path: functions, exceptions, serializers, errors that name the culprit."""

import collections
import dataclasses
import functools
import io
import pickle
import socket
import sys
import threading

import pytest

from fastray import serialization
from fastray._native import codec
from fastray.exceptions import SerializationError, TaskError

GLOBAL_LOCK = threading.Lock()


class Model:
    def __init__(self, lock=None):
        self.weights = [1, 2]
        self.lock = lock

    def predict(self):
        return self.weights


class Slotted:
    __slots__ = ("fine", "lock")

    def __init__(self):
        self.fine, self.lock = 1, threading.Lock()


class Refuses:
    def __reduce__(self):
        raise RuntimeError("not today")


# ---- where the culprit is ---------------------------------------------------------------------------


def closure_over_a_model():
    model = Model(threading.Lock())
    fine = [1, 2, 3]

    def f():
        return model, fine

    return f


def with_default(x, model=Model(threading.Lock())):  # noqa: B008
    return x, model


def nested_use():
    def outer():
        def inner():
            return GLOBAL_LOCK

        return inner

    return outer


Row = collections.namedtuple("Row", "name conn")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (threading.Lock(), "x"),
        ([1, {"db": (2, threading.Lock())}], "x[1]['db'][1]"),
        (Model(threading.Lock()), "x.lock"),
        (Model(Model(threading.Lock())), "x.lock.lock"),
        (Slotted(), "x.lock"),
        (closure_over_a_model(), "x.closure.model.lock"),
        (functools.partial(print, 1, file=threading.Lock()), "x.keywords['file']"),
        (functools.partial(closure_over_a_model()), "x.func.closure.model.lock"),
        (Model(threading.Lock()).predict, "x.__self__.lock"),
        (Row("a", threading.Lock()), "x.conn"),
        (collections.deque([threading.Lock()]), "x"),
        ({threading.Lock(): 1}, None),
        (Refuses(), "x"),
        ([(i for i in range(3))], "x[0]"),
        (threading.Condition(), None),
        (lambda: GLOBAL_LOCK, "x.globals.GLOBAL_LOCK"),
        (nested_use(), "x.globals.GLOBAL_LOCK"),
        (lambda lock=GLOBAL_LOCK: lock, "x.defaults[0]"),
    ],
    ids=repr,
)
def test_the_path_leads_to_the_culprit(value, path):
    found = serialization.explain_unpicklable(value, "x")
    if path is None:
        assert found.startswith("x")
    else:
        assert found == path


def test_culprits_in_a_class_by_value():
    class Local:
        lock = threading.Lock()

        def method(self):
            return GLOBAL_LOCK

    assert serialization.explain_unpicklable(Local, "Local") == "Local.lock"
    assert serialization.explain_unpicklable(Local(), "x") == "x.__class__.lock"
    del Local.lock
    assert serialization.explain_unpicklable(Local, "L") == "L.method.globals.GLOBAL_LOCK"


def test_nothing_to_explain():
    for value in (1, [1], Model(), print, Model, {}):
        assert serialization.explain_unpicklable(value, "x") == ""


def test_the_search_follows_loops_and_stops():
    model = Model()
    model.me, model.items = model, [model]
    model.items.append({"back": model.items, "lock": threading.Lock()})
    assert serialization.explain_unpicklable(model, "m").endswith("['lock']")
    wide = [[i] for i in range(5000)] + [threading.Lock()]
    assert serialization.explain_unpicklable(wide, "w").startswith("w")
    deep = threading.Lock()
    for _ in range(60):
        deep = [deep]
    assert serialization.explain_unpicklable(deep, "d").startswith("d[0][0][0]")


def test_a_getattr_that_raises_does_not_disturb():
    class Hostile:
        def __getattr__(self, name):
            raise RuntimeError(name)

        def __init__(self):
            object.__setattr__(self, "lock", threading.Lock())

    assert serialization.explain_unpicklable(Hostile(), "h").startswith("h")


def test_references_inside_a_value_are_no_culprits():
    class Ref:
        def __reduce__(self):
            assert codec.note_reference(self) >= 0
            return codec.take_reference, (0,)

    assert serialization.explain_unpicklable([Ref(), threading.Lock()], "x") == "x[1]"


def test_the_error_says_what_where_and_what_to_do():
    with pytest.raises(SerializationError) as caught:
        codec.dumps(closure_over_a_model())
    error = caught.value
    assert error.path == "value.closure.model.lock"
    assert "_thread.lock" in str(error)
    assert error.path in str(error)
    assert "__getstate__" in str(error)
    assert "TypeError" in error.reason


def test_dumps_function_names_the_function():
    f = closure_over_a_model()
    with pytest.raises(SerializationError, match=r"f\.closure\.model\.lock"):
        serialization.dumps_function(f)
    assert pickle.loads(serialization.dumps_function(lambda x: x + 1))(2) == 3
    assert pickle.loads(serialization.dumps_function(with_default.__class__)) is type(with_default)


# ---- inspect_serializability ------------------------------------------------------------------------


def test_inspect_serializability_finds_all_and_prints():
    out = io.StringIO()
    model = Model(threading.Lock())
    sock = socket.socket()
    try:
        ok, failures = serialization.inspect_serializability(Row(model, [sock]), name="row", print_file=out)
    finally:
        sock.close()
    assert not ok
    assert "row.name.lock" in out.getvalue()
    assert "row.conn[0]" in out.getvalue()
    assert [f for f in failures if f.name == "row.name.lock" and f.obj is model.lock and f.parent is model]


def test_inspect_serializability_of_something_fine(capsys):
    assert serialization.inspect_serializability([1, 2]) == (True, set())
    assert "serializable" in capsys.readouterr().out


# ---- serializers ------------------------------------------------------------------------------------


class Connection:
    def __init__(self, url):
        self.url, self.lock = url, threading.Lock()


@pytest.fixture
def connections_are_serializable():
    serialization.register_serializer(Connection, serializer=lambda c: c.url, deserializer=Connection)
    yield
    serialization.deregister_serializer(Connection)


@pytest.mark.usefixtures("connections_are_serializable")
def test_a_registered_serializer_is_used_everywhere():
    for value in (Connection("u"), [Connection("u")], {"k": Connection("u")}):
        back = codec.loads(*codec.dumps(value))
        back = back[0] if isinstance(back, list) else back.get("k") if isinstance(back, dict) else back
        assert type(back) is Connection
        assert back.url == "u"
    connection = Connection("closed over")
    assert pickle.loads(serialization.dumps_function(lambda: connection))().url == "closed over"
    assert codec.loads(*codec.dumps([connection, lambda: 1]))[0].url == "closed over"


def test_deregistering_and_registering_again():
    serialization.register_serializer(Connection, serializer=lambda c: 1, deserializer=str)
    serialization.register_serializer(Connection, serializer=lambda c: 2, deserializer=str)
    assert codec.loads(*codec.dumps(Connection("u"))) == "2"
    serialization.deregister_serializer(Connection)
    serialization.deregister_serializer(Connection)
    with pytest.raises(SerializationError):
        codec.dumps(Connection("u"))


def test_a_deserializer_may_be_a_lambda():
    serialization.register_serializer(Connection, serializer=lambda c: c.url, deserializer=lambda u: u * 2)
    try:
        assert codec.loads(*codec.dumps([Connection("ab")])) == ["abab"]
    finally:
        serialization.deregister_serializer(Connection)


@pytest.mark.parametrize("cls", [int, str, list, dict, type(None), 5, "Model"])
def test_classes_that_cannot_have_a_serializer(cls):
    with pytest.raises(TypeError):
        serialization.register_serializer(cls, serializer=str, deserializer=str)


def test_a_serializer_must_be_callable():
    with pytest.raises(TypeError):
        serialization.register_serializer(Model, serializer=1, deserializer=str)


# ---- exceptions -------------------------------------------------------------------------------------


def travel(exc, name="task"):
    try:
        raise exc
    except BaseException as raised:
        return serialization.load_exception(serialization.dump_exception(raised, name))


class Custom(Exception):
    def __init__(self, code, *, detail):
        super().__init__(f"code {code}")
        self.code, self.detail = code, detail


class Tampered(Exception):
    """Its own __reduce__ does not fit its __init__: loading raises."""

    def __init__(self, a, b):
        super().__init__(a)

    def __reduce__(self):
        return Tampered, ("only one",)


class NotAnExceptionWhenLoaded(Exception):
    def __reduce__(self):
        return list, ()


@dataclasses.dataclass
class Frozen(Exception):
    value: int


def test_a_builtin_exception():
    error = travel(ValueError("bad", 3))
    assert isinstance(error, TaskError)
    assert isinstance(error, ValueError)
    assert error.args == ("bad", 3)
    assert error.function_name == "task"
    assert type(error.cause) is ValueError
    assert "ValueError: ('bad', 3)" in str(error)
    assert "travel" in str(error)


def test_exceptions_with_their_own_init():
    error = travel(Custom(7, detail={"k": [1]}))
    assert isinstance(error, Custom)
    assert error.code == 7
    assert error.detail == {"k": [1]}
    assert travel(Frozen(3)).value == 3


def test_fields_kept_in_c_survive():
    error = travel(FileNotFoundError(2, "No such file", "/x"))
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename) == (2, "/x")
    assert travel(SystemExit(3)).cause.code == 3


@pytest.mark.parametrize(
    "exc",
    [Tampered(1, 2), NotAnExceptionWhenLoaded("text"), Custom(1, detail=GLOBAL_LOCK)],
    ids=["load", "type", "dump"],
)
def test_exceptions_that_do_not_travel_arrive_as_text(exc):
    error = travel(exc)
    assert isinstance(error, TaskError)
    assert error.cause is None
    assert type(exc).__name__ in error.cause_text
    assert type(exc).__name__ in str(error)
    assert "travel" in str(error)


def test_chained_causes_contexts_and_notes():
    try:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise Custom(1, detail=2)  # noqa: B904
        except Custom as middle:
            last = RuntimeError("last")
            if sys.version_info >= (3, 11):
                last.add_note("a note")
            raise last from middle
    except RuntimeError as raised:
        error = serialization.load_exception(serialization.dump_exception(raised, "t"))
    cause = error.cause
    assert isinstance(cause, RuntimeError)
    assert isinstance(cause.__cause__, Custom)
    assert isinstance(cause.__cause__.__context__, KeyError)
    if sys.version_info >= (3, 11):
        assert cause.__notes__ == ["a note"]


def test_a_chain_ends_where_it_cannot_travel():
    exc = ValueError("fine")
    exc.__cause__ = Custom(1, detail=GLOBAL_LOCK)
    error = travel(exc)
    assert type(error.cause) is ValueError
    assert error.cause.__cause__ is None
    assert "code 1" in str(error)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_exception_groups():
    error = travel(ExceptionGroup("many", [ValueError(1), Custom(2, detail=3)]))  # noqa: F821
    assert isinstance(error, ExceptionGroup)  # noqa: F821
    assert [type(e) for e in error.cause.exceptions] == [ValueError, Custom]


def test_local_exception_classes_go_by_value():
    class Local(Exception):
        pass

    assert type(travel(Local("x")).cause).__name__ == "Local"


def test_a_str_that_raises_and_surrogates_do_not_stop_an_error():
    class Rude(Exception):
        def __str__(self):
            raise RuntimeError

    assert "Rude" in travel(Rude()).cause_text
    assert "ValueError" in travel(ValueError("\ud800")).cause_text


def test_a_task_error_of_another_task_keeps_its_cause():
    inner = travel(Custom(5, detail=None), "inner")
    outer = travel(inner, "outer")
    assert isinstance(outer, Custom)
    assert outer.code == 5
    assert outer.function_name == "outer"
