"""runtime_env: variables and working directory of tasks, jobs, children; what cannot be set up says so."""

from __future__ import annotations

import json
import os

import pytest
from integration_helpers import eventually, is_alive

import fastray
from fastray.exceptions import RuntimeEnvSetupError

GET_S = 30

pytestmark = pytest.mark.usefixtures("node")


@fastray.remote
def variables(*names):
    return [os.environ.get(name) for name in names]


@fastray.remote
def place():
    return os.getcwd(), os.getpid()


def test_variables_are_set_for_the_task_and_no_other():
    special = variables.options(runtime_env={"env_vars": {"MY_A": "1", "MY_B": "zwei=2"}})
    refs = [special.remote("MY_A", "MY_B"), variables.remote("MY_A", "MY_B")] * 5
    assert fastray.get(refs, timeout=GET_S) == [["1", "zwei=2"], [None, None]] * 5
    assert "MY_A" not in os.environ


def test_tasks_of_one_environment_share_workers_and_of_others_do_not():
    def pids(**options):
        return {
            pid
            for _, pid in fastray.get([place.options(**options).remote() for _ in range(20)], timeout=GET_S)
        }

    one, same = pids(runtime_env={"env_vars": {"A": "1"}}), pids(runtime_env={"env_vars": {"A": "1"}})
    two, none = pids(runtime_env={"env_vars": {"A": "2"}}), pids()
    assert len(one | same) <= 3
    assert not one & two
    assert not (one | two) & none


def test_the_same_variables_in_another_order_are_the_same_environment():
    from fastray.runtime_env import RuntimeEnv

    one = RuntimeEnv(env_vars={"A": "1", "B": "2"})
    two = RuntimeEnv(env_vars={"B": "2", "A": "1"})
    assert one.key() == two.key()
    assert fastray.get(variables.options(runtime_env=one).remote("A"), timeout=GET_S) == ["1"]
    assert fastray.get(variables.options(runtime_env=dict(two)).remote("B"), timeout=GET_S) == ["2"]


def test_a_working_directory_is_where_the_task_runs_and_imports_from(tmp_path):
    (tmp_path / "module_of_this_folder.py").write_text("value = 17\n")
    (tmp_path / "data.txt").write_text("some data")

    @fastray.remote(runtime_env={"working_dir": str(tmp_path)})
    def work():
        import module_of_this_folder

        with open("data.txt") as file:
            return os.getcwd(), module_of_this_folder.value, file.read()

    where, value, data = fastray.get(work.remote(), timeout=GET_S)
    assert os.path.samefile(where, tmp_path) or data  # Ray copies the folder
    assert (value, data) == (17, "some data")
    assert fastray.get(place.remote(), timeout=GET_S)[0] == os.getcwd()


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"env_vars": {"A": 1}}, TypeError),
        ({"env_vars": ["A"]}, TypeError),
        ({"env_vars": {"A=B": "1"}}, ValueError),
        ({"working_dir": 3}, TypeError),
        ({"working_dir": "/no/such/folder"}, ValueError),
        ({"working_dir": "s3://bucket/x.zip"}, RuntimeEnvSetupError),
        ({"pip": {"no packages": []}}, ValueError),
        ({"conda": "base"}, RuntimeEnvSetupError),
        ("env", TypeError),
        ({3: 4}, TypeError),
    ],
    ids=str,
)
def test_a_wrong_environment_is_refused_when_it_is_given(environment, kind):
    with pytest.raises(kind):
        place.options(runtime_env=environment)
    with pytest.raises(kind):
        fastray.remote(runtime_env=environment)(lambda: 1)


def test_an_unknown_field_is_warned_of():
    with pytest.warns(UserWarning, match="env_vars"):
        place.options(runtime_env={"env_var": {"A": "1"}})


def test_an_environment_that_fails_in_the_worker_is_a_typed_error(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    task = place.options(runtime_env={"working_dir": str(folder)})
    folder.rmdir()
    refs = [task.remote() for _ in range(3)]
    for ref in refs:
        with pytest.raises(RuntimeEnvSetupError, match="gone"):
            fastray.get(ref, timeout=GET_S)
    assert fastray.get(variables.remote("NONE"), timeout=GET_S) == [None]


def test_children_inherit_the_environment_of_their_parent(tmp_path):
    @fastray.remote
    def parent():
        plain = variables.remote("P", "C")
        more = variables.options(runtime_env={"env_vars": {"C": "child"}}).remote("P", "C")
        other = variables.options(runtime_env={"env_vars": {"P": "changed"}}).remote("P", "C")
        return fastray.get([plain, more, other])

    rows = fastray.get(
        parent.options(runtime_env={"env_vars": {"P": "parent"}, "working_dir": str(tmp_path)}).remote(),
        timeout=GET_S,
    )
    assert rows == [["parent", None], ["parent", "child"], ["changed", None]]

    @fastray.remote
    def nested():
        return fastray.get(place.remote())[0]

    where = fastray.get(nested.options(runtime_env={"working_dir": str(tmp_path)}).remote(), timeout=GET_S)
    assert os.path.samefile(where, tmp_path)


def test_the_context_shows_the_environment():
    @fastray.remote(runtime_env={"env_vars": {"A": "1"}})
    def look():
        context = fastray.get_runtime_context()
        return context.runtime_env, json.loads(context.get_runtime_env_string())

    shown, text = fastray.get(look.remote(), timeout=GET_S)
    assert shown["env_vars"] == {"A": "1"}
    assert text["env_vars"] == {"A": "1"}


def test_the_environment_of_a_job_is_that_of_its_tasks_and_their_children(run_program, tmp_path):
    (tmp_path / "folder").mkdir()
    run_program(
        """
        import os, sys, fastray
        job = {"env_vars": {"J": "job", "K": "keep"}, "working_dir": sys.argv[1]}
        fastray.init(num_cpus=2, runtime_env=job)

        @fastray.remote
        def look():
            get = os.environ.get
            return get("J"), get("K"), get("TT"), os.path.basename(os.getcwd())

        @fastray.remote
        def parent():
            return fastray.get(look.remote())

        task = {"env_vars": {"J": "task", "TT": "t"}}
        assert fastray.get(look.remote()) == ("job", "keep", None, "folder")
        assert fastray.get(parent.remote()) == ("job", "keep", None, "folder")
        assert fastray.get(look.options(runtime_env=task).remote()) == ("task", "keep", "t", "folder")
        assert fastray.get(parent.options(runtime_env=task).remote()) == ("task", "keep", "t", "folder")
        assert "J" not in os.environ
        assert list(fastray.remote(lambda x: os.environ["J"]).map([1])) == ["job"]
        """,
        str(tmp_path / "folder"),
    )


def test_a_wrong_environment_of_a_job_starts_nothing(run_program):
    run_program(
        """
        import fastray
        for environment, kind in (
            ({"env_vars": {"A": 1}}, TypeError),
            ({"working_dir": "/no/such/folder"}, ValueError),
            ({"conda": "x"}, fastray.exceptions.RuntimeEnvSetupError),
        ):
            try:
                fastray.init(num_cpus=1, runtime_env=environment)
            except kind:
                pass
            else:
                raise AssertionError(environment)
            assert not fastray.is_initialized()
        """
    )


def test_a_retry_has_its_environment_again(tmp_path):
    path = str(tmp_path / "died")

    @fastray.remote(runtime_env={"env_vars": {"A": "1"}})
    def fragile():
        if not os.path.exists(path):
            with open(path, "x") as file:
                file.write(str(os.getpid()))
            os.kill(os.getpid(), 9)
        return os.environ["A"]

    assert fastray.get(fragile.remote(), timeout=GET_S) == "1"
    with open(path) as file:
        assert not is_alive(int(file.read()))


def test_many_environments_do_not_pile_up_processes():
    from integration_helpers import worker_pids

    for i in range(30):
        env = {"env_vars": {"N": str(i)}}
        assert fastray.get(variables.options(runtime_env=env).remote("N"), timeout=GET_S) == [str(i)]
    assert eventually(lambda: len(worker_pids()) <= 6), worker_pids()
