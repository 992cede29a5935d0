"""What can be a remote function: lambdas, closures, redefinitions, methods; and in which kinds of program."""

from __future__ import annotations

import functools
import gc
import os
import sys

import numpy as np
import pytest
from integration_helpers import store_bytes

import fastray

GET_S = 30


@pytest.mark.usefixtures("node")
class TestKindsOfFunctions:
    """Each in the same session."""

    def test_a_lambda(self):
        assert fastray.get(fastray.remote(lambda x: x * 2).remote(21), timeout=GET_S) == 42

    def test_a_closure_over_a_value_a_list_and_a_large_array(self):
        base, items, array = 10, [1, 2], np.arange(200_000)

        @fastray.remote
        def closed(i):
            return base + i, items, int(array.sum())

        assert fastray.get(closed.remote(1), timeout=GET_S) == (11, [1, 2], int(array.sum()))

    def test_a_closure_over_a_reference(self):
        ref = fastray.put("kept")

        @fastray.remote
        def closed():
            return fastray.get(ref)

        assert fastray.get(closed.remote(), timeout=GET_S) == "kept"

    def test_a_closure_keeps_the_object_it_refers_to(self):
        def make():
            ref = fastray.put(np.ones(1_000_000))

            @fastray.remote
            def closed():
                return float(fastray.get(ref).sum())

            first = closed.remote()
            closed.__wrapped__.__closure__[0].cell_contents = None
            return closed, first

        before = store_bytes()
        closed, first = make()
        gc.collect()
        assert fastray.get([first, closed.remote()], timeout=GET_S) == [1e6, 1e6]
        assert store_bytes() > before + 7_000_000

    def test_a_closure_over_a_list_of_references_to_tasks(self):
        @fastray.remote
        def number(i):
            return i

        refs = [number.remote(i) for i in range(5)]

        @fastray.remote
        def closed():
            return sum(fastray.get(refs))

        assert fastray.get(closed.remote(), timeout=GET_S) == 10

    def test_a_closure_over_the_module_fastray(self):
        module = fastray

        @fastray.remote
        def inner():
            return "inner"

        @fastray.remote
        def outer():
            return module.get(inner.remote())

        assert fastray.get(outer.remote(), timeout=GET_S) == "inner"

    def test_the_module_fastray_inside_a_users_object(self):
        class Holder:
            def __init__(self):
                self.ray = fastray

            def run(self):
                return self.ray.get(self.ray.put(5))

        @fastray.remote
        def use(holder):
            return holder.run()

        assert fastray.get(use.remote(Holder()), timeout=GET_S) == 5

    def test_a_recursive_function(self):
        @fastray.remote
        def factorial(n):
            return 1 if n == 0 else n * fastray.get(factorial.remote(n - 1))

        assert fastray.get(factorial.remote(10), timeout=GET_S) == 3_628_800

    def test_mutually_recursive_functions(self):
        @fastray.remote
        def even(n):
            return True if n == 0 else fastray.get(odd.remote(n - 1))

        @fastray.remote
        def odd(n):
            return False if n == 0 else fastray.get(even.remote(n - 1))

        assert fastray.get(even.remote(6), timeout=GET_S) is True

    def test_a_redefined_function_is_the_new_one(self):
        results = []
        for i in range(20):
            namespace = {"fastray": fastray}
            exec(f"@fastray.remote\ndef f():\n    return {i}", namespace)
            results.append(fastray.get(namespace["f"].remote(), timeout=GET_S))
        assert results == list(range(20))

    def test_functions_of_one_name_live_side_by_side(self):
        def make(i):
            @fastray.remote
            def same():
                return i

            return same

        functions = [make(i) for i in range(50)]
        assert fastray.get([f.remote() for f in functions], timeout=GET_S) == list(range(50))

    def test_a_remote_function_as_an_argument_and_in_a_container(self):
        @fastray.remote
        def double(x):
            return 2 * x

        @fastray.remote
        def apply(function, x):
            return fastray.get(function.remote(x))

        @fastray.remote
        def apply_all(functions, x):
            return [fastray.get(f.remote(x)) for f in functions]

        assert fastray.get(apply.remote(double, 4), timeout=GET_S) == 8
        assert fastray.get(apply_all.remote([double, double.options(num_cpus=0)], 4), timeout=GET_S) == [8, 8]

    def test_a_remote_function_as_a_result(self):
        @fastray.remote
        def make(n):
            @fastray.remote
            def add(x):
                return x + n

            return add

        add = fastray.get(make.remote(5), timeout=GET_S)
        assert fastray.get(add.remote(1), timeout=GET_S) == 6

    def test_a_plain_function_and_a_class_as_arguments(self):
        class Point:
            def __init__(self, x):
                self.x = x

            def doubled(self):
                return Point(2 * self.x)

        @fastray.remote
        def call(function, cls):
            return function(cls(3)).doubled()

        point = fastray.get(call.remote(lambda p: Point(p.x + 1), Point), timeout=GET_S)
        assert point.x == 8

    def test_a_bound_method_a_static_method_and_a_decorated_function(self):
        class Adder:
            n = 3

            def add(self, x):
                return self.n + x

            @staticmethod
            def times(x):
                return x * 10

        def twice(function):
            @functools.wraps(function)
            def wrapper(x):
                return function(function(x))

            return wrapper

        @fastray.remote
        @twice
        def increment(x):
            return x + 1

        refs = [
            fastray.remote(Adder().add).remote(1),
            fastray.remote(Adder.times).remote(2),
            increment.remote(5),
        ]
        assert fastray.get(refs, timeout=GET_S) == [4, 20, 7]

    def test_a_function_of_an_imported_module(self):
        from integration_helpers import tally

        assert fastray.get(fastray.remote(tally).remote("/no/such/file"), timeout=GET_S) == []

    def test_a_function_that_uses_globals_of_its_module(self):
        @fastray.remote
        def uses():
            return GET_S, os.path.sep, np.__name__

        assert fastray.get(uses.remote(), timeout=GET_S) == (30, "/", "numpy")

    def test_globals_are_taken_at_the_first_call(self):
        namespace = {"fastray": fastray, "n": 1}
        exec("@fastray.remote\ndef f():\n    return n", namespace)
        namespace["n"] = 2
        assert fastray.get(namespace["f"].remote(), timeout=GET_S) == 2

    def test_a_task_changes_globals_of_its_worker_not_of_the_driver(self):
        namespace = {"fastray": fastray, "counter": [0]}
        exec("@fastray.remote\ndef f():\n    counter[0] += 1\n    return counter[0]", namespace)
        assert fastray.get(namespace["f"].remote(), timeout=GET_S) >= 1
        assert namespace["counter"] == [0]

    def test_async_functions_are_refused_at_the_decorator(self):
        async def later():
            return 1

        with pytest.raises(ValueError, match="async"):
            fastray.remote(later)

    def test_remote_takes_no_positional_options_and_no_non_functions(self):
        for wrong in (lambda: fastray.remote(5), lambda: fastray.remote(), lambda: fastray.remote("f")):
            with pytest.raises(TypeError):
                wrong()


# ---- kinds of programs -------------------------------------------------------------------------------

PROGRAM = """
import fastray as ray

class Point:
    def __init__(self, x):
        self.x = x
    def __eq__(self, other):
        return type(other) is type(self) and other.x == self.x

OFFSET = 5

def helper(x):
    return x + OFFSET

@ray.remote
def f(p):
    assert isinstance(p, Point)
    return Point(helper(p.x))

@ray.remote
def fail():
    class Local(Exception): pass
    raise Local("x")

class Mine(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")
        self.a = a

@ray.remote
def fail_main():
    raise Mine(1, 2)

assert ray.get(f.remote(Point(1)), timeout=20) == Point(6)
try:
    ray.get(fail_main.remote(), timeout=20)
except Mine as e:
    assert e.a == 1 and isinstance(e, ray.exceptions.RayTaskError)
print("done", __name__)
"""


@pytest.mark.parametrize("inline", [False, True], ids=["script", "python -c"])
def test_a_program_without_main_guard_runs(run_program, inline):
    assert run_program(PROGRAM, inline=inline).stdout == "done __main__\n"


def test_a_program_from_standard_input_runs(tmp_path):
    import subprocess

    from integration_helpers import program_environment

    done = subprocess.run(
        [sys.executable, "-"],
        input=PROGRAM,
        capture_output=True,
        text=True,
        timeout=GET_S,
        env=program_environment(),
        cwd=tmp_path,
    )
    assert done.stdout == "done __main__\n", done.stderr


def test_cells_of_a_notebook_run_one_after_the_other(run_program):
    program = """
    import sys
    cells = [
        "import fastray as ray",
        "@ray.remote\\ndef f(x):\\n    return x + 1",
        "assert ray.get(f.remote(1), timeout=20) == 2",
        "class A:\\n    v = 1",
        "@ray.remote\\ndef f(x):\\n    return x + A.v + 100",
        "assert ray.get(f.remote(1), timeout=20) == 102",
        "class A:\\n    v = 2",
        "@ray.remote\\ndef f(x):\\n    return type(x).v",
        "assert ray.get(f.remote(A()), timeout=20) == 2",
        "refs = [f.remote(A()) for _ in range(3)]",
        "assert ray.get(refs, timeout=20) == [2, 2, 2]",
        "del refs",
        "ray.shutdown()",
        "ray.init(num_cpus=1)",
        "assert ray.get(f.remote(A()), timeout=20) == 2",
    ]
    shell = vars(sys.modules["__main__"])
    for i, cell in enumerate(cells):
        exec(compile(cell, f"<cell {i}>", "exec"), shell)
    print("done")
    """
    assert run_program(program).stdout == "done\n"


def test_workers_import_modules_beside_the_script(run_program, tmp_path):
    (tmp_path / "beside.py").write_text("class Thing:\n    n = 7\ndef make():\n    return Thing()\n")
    program = """
    import fastray as ray, beside
    @ray.remote
    def f(thing):
        import beside
        return beside.make(), thing.n
    thing, n = ray.get(f.remote(beside.Thing()), timeout=20)
    assert type(thing) is beside.Thing and n == 7
    print(ray.get(ray.remote(beside.make).remote(), timeout=20).n)
    """
    assert run_program(program, cwd="/").stdout == "7\n"


def test_workers_inherit_path_environment_and_folder_as_they_are_at_init(run_program, tmp_path):
    program = """
    import os, sys
    import fastray as ray
    folder = sys.argv[1]
    sys.path.append(folder + "/extra")
    os.environ["MY_OWN"] = "set before init"
    os.chdir(folder)
    ray.init(num_cpus=1)
    @ray.remote
    def look():
        return folder + "/extra" in sys.path, os.environ.get("MY_OWN"), os.getcwd()
    print(ray.get(look.remote(), timeout=20))
    """
    out = run_program(program, tmp_path, cwd="/").stdout
    assert out == f"(True, 'set before init', '{tmp_path}')\n"


def test_a_remote_function_of_an_imported_package_calls_its_siblings(run_program, tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("from pack.work import total\n")
    (package / "work.py").write_text(
        "import fastray as ray\n"
        "@ray.remote\ndef one(i):\n    return i\n"
        "@ray.remote\ndef total(n):\n    return sum(ray.get([one.remote(i) for i in range(n)]))\n"
    )
    program = "import fastray, pack\nprint(fastray.get(pack.total.remote(5), timeout=20))"
    assert run_program(program).stdout == "10\n"
