"""recovery/code_digest.py: what changes the digest of a function, what does not, and that it is the same in every
run of a program.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import fastray
from fastray._native import pickling
from fastray.recovery.code_digest import digest_of, is_library

ROOT = str(Path(fastray.__file__).resolve().parent.parent)


def made(source, name="f"):
    """`name` as the source defines it, in a namespace of its own."""
    namespace = {"__name__": "__main__"}
    exec(compile(textwrap.dedent(source), "anywhere.py", "exec"), namespace)
    return namespace[name]


BASE = """
    import math
    K = 3
    SEEN = {"a", "b"}
    def helper(x):
        return x + K
    class Point:
        scale = 1
        def move(self, by):
            return helper(by) * self.scale
    def f(x, y=1, *, z=2):
        return Point().move(x) + math.floor(y) + z if x not in SEEN else [i for i in range(x)]
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x + K", "x - K"),
        ("K = 3", "K = 4"),
        ("scale = 1", "scale = 2"),
        ("y=1", "y=2"),
        ("z=2", "z=3"),
        ("helper(by)", "helper(by + 1)"),
        ("math.floor", "math.ceil"),
        ('{"a", "b"}', '{"a", "c"}'),
        ("[i for i", "[-i for i"),
    ],
)
def test_what_counts(old, new):
    assert old in BASE
    assert digest_of(made(BASE)) != digest_of(made(BASE.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import math", "import math  # for floor\n\n\n"),
        ("K = 3", "UNUSED = 7\n    K = 3"),
        ("def helper", "def other():\n        return 1\n    def helper"),
        ("x + K", "x + K  # so"),
    ],
)
def test_what_does_not_count(old, new):
    assert digest_of(made(BASE)) == digest_of(made(BASE.replace(old, new)))


def test_a_copy_by_pickle_is_the_same():
    f = made(BASE)
    copy = pickle.loads(pickling.dumps_by_value(f))
    assert copy is not f
    assert digest_of(copy) == digest_of(f)


def test_recursion_and_aliasing_end():
    source = "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - 1)\n"
    even = made(source, "even")
    assert digest_of(even) == digest_of(even)
    loop: list[object] = []
    loop.append(loop)
    assert digest_of(loop) != digest_of([[]])
    deep: list[object] = []
    for i in range(140):
        deep = [deep, i]
    assert digest_of(deep) == digest_of(deep)


def test_own_modules_count_by_code_and_libraries_by_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "own_module_of_test.py"

    def digest(body):
        source.write_text(f"def helper(x):\n    return {body}\n")
        importlib.invalidate_caches()
        sys.modules.pop("own_module_of_test", None)
        by_name = made("import own_module_of_test\ndef f(x):\n    return own_module_of_test.helper(x)\n")
        module = importlib.import_module("own_module_of_test")
        return digest_of(module.helper), digest_of(by_name)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before, after = digest("x + 1"), digest("x + 22")
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert not is_library("own_module_of_test")
    assert is_library("json")
    assert is_library("numpy")
    assert is_library("builtins")
    assert is_library("fastray.api")
    assert not is_library("__main__")


@dataclasses.dataclass
class Config:
    rate: float
    layers: list


def test_values():
    values = [
        *(None, True, 1, 1.0, 1j, "a", b"a", (1, 2), [1, 2], {1: 2}, {1}, frozenset([1]), Ellipsis),
        *(np.arange(3), np.arange(3.0), np.arange(4).reshape(2, 2), np.float32(1), range(3), len, int, digest_of),
        *(Config(1.0, [2]), Config(2.0, [2]), functools.partial(int, base=2), functools.partial(int, base=3)),
        *({"a": 1, "b": 2}, {"b": 2, "a": 1}, {}.keys(), {1: 1}.keys(), [], (), "", b"", {}, set()),
    ]
    digests = [digest_of(v) for v in values]
    assert len(set(digests)) == len(values)
    assert digests == [digest_of(v) for v in values]


def test_what_nobody_can_pickle_counts_by_its_type():
    assert digest_of(threading.Lock()) == digest_of(threading.Lock())
    assert digest_of(threading.Lock()) != digest_of(threading.Event())


PROGRAM = """
import enum, dataclasses, sys
import fastray
from fastray._native import pickling
from fastray.recovery.code_digest import digest_of, name_class

class Color(enum.Enum):
    RED = 1
    BLUE = 2

@dataclasses.dataclass
class Item:
    name: str
    tags: frozenset = frozenset(["x", "y", "z"])

@fastray.remote(num_cpus=0.5)
def child(x):
    return x

def f(x, kinds={"a", "b", "c", "d"}):
    if x in {"one", "two", "three"}:
        return Color.RED, Item("a")
    return child.remote(x)

print(digest_of(f).hex(), digest_of((Color.BLUE, Item("b"), lambda: Item)).hex())
pickling.name_class = name_class
copy = __import__("pickle").loads(pickling.dumps_by_value((Item("a"), f)))
assert type(copy[0]) is Item
assert digest_of(copy[1]) == digest_of(f)
"""


def test_every_run_finds_the_same(tmp_path):
    outputs = set()
    for run, folder in enumerate(("one", "two", "three")):
        (tmp_path / folder).mkdir()
        script = tmp_path / folder / "program.py"
        script.write_text("\n" * run + PROGRAM)  # other lines, another file
        environment = {"PYTHONPATH": ROOT, "PYTHONHASHSEED": str(run), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1
