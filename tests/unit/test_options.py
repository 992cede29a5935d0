"""Options of tasks, scheduling strategies and runtime_envs: what is accepted, what is refused and how."""

from __future__ import annotations

import os
import pickle
import sys

import pytest

from fastray import options
from fastray.exceptions import InvalidOptionError, OptionTypeError, RuntimeEnvSetupError, UnknownOptionError
from fastray.options import STREAMING, TaskOptions, parse_task_options
from fastray.runtime_env import RuntimeEnv, parse_runtime_env
from fastray.util import scheduling_strategies as strategies
from fastray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

NODE = "ab" * 16


def test_defaults_are_rays():
    plain = parse_task_options({})
    assert (plain.num_cpus, plain.num_gpus, plain.max_retries, plain.max_calls) == (1, 0, 3, 0)
    assert plain.retry_exceptions is False
    assert plain.name is None
    assert plain.generator_backpressure_num_objects == -1
    assert plain.demand() == {"CPU": 10_000}
    assert plain == options.DEFAULT_OPTIONS
    assert repr(plain) == "TaskOptions()"


def test_demand_is_counted_in_ten_thousandths():
    wanted = parse_task_options(
        {
            "num_cpus": 0,
            "num_gpus": 0.5,
            "memory": 1.5e9,
            "resources": {"disk": 2, "none": 0},
            "accelerator_type": "A100",
        }
    )
    assert wanted.demand() == {
        "GPU": 5_000,
        "memory": 1_500_000_000 * 10_000,
        "disk": 20_000,
        "accelerator_type:A100": 10,
    }


@pytest.mark.parametrize("parts", [3, 7, 10, 9999])
def test_n_parts_of_one_nth_fit_into_one(parts):
    assert 0 < parts * parse_task_options({"num_gpus": 1 / parts}).demand()["GPU"] <= 10_000


REFUSED = [
    ("num_cpus", -1, ValueError),
    ("num_cpus", "a", TypeError),
    ("num_cpus", 0.00001, ValueError),
    ("num_cpus", float("nan"), ValueError),
    ("num_cpus", float("inf"), ValueError),
    ("num_gpus", -0.5, ValueError),
    ("num_gpus", 1.5, ValueError),
    ("memory", -1, ValueError),
    ("memory", "1", TypeError),
    ("resources", [1], TypeError),
    ("resources", {1: 1}, TypeError),
    ("resources", {"": 1}, TypeError),
    ("resources", {"a": "x"}, TypeError),
    ("resources", {"a": -1}, ValueError),
    ("resources", {"CPU": 1}, ValueError),
    ("resources", {"GPU": 1}, ValueError),
    ("resources", {"memory": 1}, ValueError),
    ("num_returns", -1, ValueError),
    ("num_returns", 1.5, TypeError),
    ("num_returns", "x", TypeError),
    ("num_returns", 70_000, ValueError),
    ("max_retries", -2, ValueError),
    ("max_retries", 1.0, TypeError),
    ("retry_exceptions", 1, TypeError),
    ("retry_exceptions", None, TypeError),
    ("retry_exceptions", ValueError, TypeError),
    ("retry_exceptions", [1], ValueError),
    ("retry_exceptions", [BaseException], ValueError),
    ("max_calls", -1, ValueError),
    ("max_calls", 1.0, TypeError),
    ("name", 1, TypeError),
    ("runtime_env", 1, TypeError),
    ("runtime_env", {"env_vars": {"a": 1}}, TypeError),
    ("scheduling_strategy", "x", ValueError),
    ("scheduling_strategy", 1, TypeError),
    ("label_selector", [1], TypeError),
    ("label_selector", {"a": 1}, TypeError),
    ("label_selector", {"a b": "c"}, ValueError),
    ("label_selector", {"a": "in(b,c d)"}, ValueError),
    ("accelerator_type", 1, TypeError),
    ("enable_task_events", 1, TypeError),
    ("_generator_backpressure_num_objects", 0, ValueError),
    ("object_store_memory", 1, ValueError),
    ("placement_group_bundle_index", -2, ValueError),
]


@pytest.mark.parametrize(("option", "value", "base"), REFUSED, ids=lambda v: str(v)[:40])
def test_bad_values_are_refused_with_the_class_that_ray_raises(option, value, base):
    for over in (None,) if option == "max_calls" else (None, options.DEFAULT_OPTIONS):
        with pytest.raises(InvalidOptionError) as caught:
            parse_task_options({option: value}, over)
        assert isinstance(caught.value, base)
        assert isinstance(caught.value, TypeError) == (base is TypeError)
        assert caught.value.option.startswith(option)
        assert option.lstrip("_") in str(caught.value)


ACCEPTED = [
    ("num_cpus", True, 1),
    ("num_cpus", 1.5, 1.5),
    ("num_gpus", 2.0, 2),
    ("resources", {"a": 0.5}, {"a": 0.5}),
    ("num_returns", 0, 0),
    ("num_returns", "dynamic", "dynamic"),
    ("max_retries", -1, -1),
    ("retry_exceptions", [ValueError], (ValueError,)),
    ("retry_exceptions", (), ()),
    ("max_calls", 5, 5),
    ("name", "", ""),
    ("scheduling_strategy", "SPREAD", "SPREAD"),
    ("label_selector", {"zone": "!in(a,b)", "x/y": ""}, {"zone": "!in(a,b)", "x/y": ""}),
    ("_generator_backpressure_num_objects", -1, -1),
    ("num_cpus", None, 1),
    ("max_retries", None, 3),
    ("placement_group", None, "default"),
]


@pytest.mark.parametrize(("option", "value", "kept"), ACCEPTED, ids=lambda v: str(v)[:40])
def test_good_values_are_kept(option, value, kept):
    assert getattr(parse_task_options({option: value}), option.lstrip("_")) == kept


@pytest.mark.parametrize(
    ("option", "suggestion"), [("num_cpu", "num_cpus"), ("max_retrys", "max_retries"), ("zzz", None)]
)
def test_unknown_options_get_a_suggestion(option, suggestion):
    with pytest.raises(UnknownOptionError) as caught:
        parse_task_options({option: 1})
    assert caught.value.suggestion == suggestion
    assert option in str(caught.value)
    assert (suggestion or "num_cpus") in str(caught.value)


def test_options_of_actors_are_named_as_such():
    with pytest.raises(UnknownOptionError, match="max_restarts is an option of actors"):
        parse_task_options({"max_restarts": 1})


def test_options_go_over_those_of_the_function():
    base = parse_task_options({"num_cpus": 2, "max_retries": 0, "max_calls": 7})
    over = parse_task_options({"num_cpus": 3}, base)
    assert (over.num_cpus, over.max_retries, over.max_calls) == (3, 0, 7)
    assert parse_task_options({}, base) is base
    assert base.num_cpus == 2
    with pytest.raises(InvalidOptionError, match="belongs to the function"):
        parse_task_options({"max_calls": 1}, base)


def test_returns_of_functions_and_generators():
    assert parse_task_options({}).returns(is_generator=False) == 1
    assert parse_task_options({}).returns(is_generator=True) == STREAMING
    assert parse_task_options({"num_returns": 3}).returns(is_generator=True) == 3
    streaming = parse_task_options({"num_returns": "streaming"})
    assert streaming.returns(is_generator=True) == STREAMING
    with pytest.raises(InvalidOptionError, match="f does not yield"):
        streaming.returns(is_generator=False, function_name="f")


DIFFERENT = [
    {},
    {"num_cpus": 2},
    {"name": "n"},
    {"max_retries": 0},
    {"retry_exceptions": [ValueError]},
    {"runtime_env": {"env_vars": {"A": "1"}}},
    {"runtime_env": {"env_vars": {"A": "2"}}},
    {"scheduling_strategy": "SPREAD"},
    {"scheduling_strategy": NodeAffinitySchedulingStrategy(NODE, soft=True)},
    {"scheduling_strategy": NodeAffinitySchedulingStrategy(NODE, soft=False)},
    {"label_selector": {"a": "b"}},
    {"resources": {"a": 1, "b": 2}},
    {"num_returns": 2},
]


def test_keys_tell_contents_apart():
    keys = {parse_task_options(given).key() for given in DIFFERENT}
    assert len(keys) == len(DIFFERENT)
    assert keys == {parse_task_options(given).key() for given in DIFFERENT}
    one = parse_task_options({"resources": {"a": 1, "b": 2}})
    assert one == parse_task_options({"resources": {"b": 2, "a": 1}})
    assert hash(one) == hash(parse_task_options({"resources": {"b": 2, "a": 1}}))


def test_scheduling_keys_ignore_what_the_scheduler_does_not_see():
    plain = TaskOptions.scheduling_key(options.DEFAULT_OPTIONS)
    assert parse_task_options({"name": "n", "max_retries": 9}).scheduling_key() == plain
    assert parse_task_options({"scheduling_strategy": "DEFAULT"}).scheduling_key() == plain
    assert parse_task_options({"num_cpus": 2}).scheduling_key() != plain


def test_options_pickle():
    for given in DIFFERENT:
        made = parse_task_options(given)
        assert pickle.loads(pickle.dumps(made)) == made


def test_the_older_placement_group_options_become_a_strategy():
    made = parse_task_options({"placement_group": "pg", "placement_group_bundle_index": 2})
    assert made.scheduling_strategy == PlacementGroupSchedulingStrategy("pg", 2)


# ---- scheduling strategies ----


def test_strategies_are_values():
    assert In("a", "b") == In("a", "b") != NotIn("a", "b")
    assert Exists() == Exists() != DoesNotExist()
    assert repr(In("a")) == "In(values=['a'])"
    labels = NodeLabelSchedulingStrategy({"zone": In("a")}, soft={"disk": Exists()})
    assert labels == NodeLabelSchedulingStrategy({"zone": In("a")}, soft={"disk": Exists()})
    assert hash(labels) != hash(NodeLabelSchedulingStrategy({"zone": In("b")}, soft={"disk": Exists()}))
    assert pickle.loads(pickle.dumps(labels)) == labels
    assert NodeAffinitySchedulingStrategy(bytes.fromhex(NODE), True).node_id == NODE
    assert len(strategies.STRATEGIES) == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: NodeAffinitySchedulingStrategy("x", True),
        lambda: NodeAffinitySchedulingStrategy("", True),
        lambda: NodeAffinitySchedulingStrategy(NODE, False, _spill_on_unavailable=True),
        lambda: NodeAffinitySchedulingStrategy(NODE, True, _fail_on_unavailable=True),
        lambda: NodeLabelSchedulingStrategy(None),
        lambda: NodeLabelSchedulingStrategy({}, soft={}),
        lambda: NodeLabelSchedulingStrategy({"a": 1}),
        lambda: NodeLabelSchedulingStrategy({1: In("b")}),
        lambda: NodeLabelSchedulingStrategy([1]),
        lambda: In(),
        lambda: In(1),
        lambda: PlacementGroupSchedulingStrategy(None, -2),
    ],
)
def test_senseless_strategies_are_refused(make):
    with pytest.raises(ValueError, match=r".+") as caught:
        make()
    assert type(caught.value) is InvalidOptionError


def test_strategies_of_wrong_types_are_refused():
    with pytest.raises(OptionTypeError):
        NodeAffinitySchedulingStrategy(1, True)
    with pytest.raises(OptionTypeError):
        PlacementGroupSchedulingStrategy(None, "a")


# ---- runtime_env ----


def test_a_runtime_env_is_checked_and_stays_a_dict(tmp_path):
    env = RuntimeEnv(
        env_vars={"A": "1"}, working_dir=str(tmp_path), pip=None, config={"setup_timeout_seconds": 3}
    )
    assert env == {
        "env_vars": {"A": "1"},
        "working_dir": str(tmp_path),
        "config": {"setup_timeout_seconds": 3},
    }
    assert env.env_vars() == {"A": "1"}
    assert env.working_dir() == str(tmp_path)
    assert env.has_working_dir()
    assert type(env.to_dict()) is dict
    back = pickle.loads(pickle.dumps(env))
    assert back == env
    assert type(back) is RuntimeEnv
    assert parse_runtime_env(dict(env)).key() == env.key() == back.key()
    assert RuntimeEnv(env_vars={}) == {} == parse_runtime_env({})


def test_relative_directories_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RuntimeEnv(working_dir=".").working_dir() == str(tmp_path)
    assert RuntimeEnv(working_dir=tmp_path).working_dir() == str(tmp_path)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"env_vars": {"A": 1}}, OptionTypeError),
        ({"env_vars": {1: "A"}}, OptionTypeError),
        ({"env_vars": [1]}, OptionTypeError),
        ({"env_vars": {"A=B": "1"}}, InvalidOptionError),
        ({"env_vars": {"A": "\0"}}, InvalidOptionError),
        ({"working_dir": 1}, OptionTypeError),
        ({"working_dir": "no/such/directory"}, InvalidOptionError),
        ({"working_dir": "s3://bucket/x.zip"}, RuntimeEnvSetupError),
        ({"working_dir": __file__}, InvalidOptionError),
        ({"conda": "base"}, RuntimeEnvSetupError),
        ({"image_uri": "x"}, RuntimeEnvSetupError),
        ({"py_modules": "."}, OptionTypeError),
        ({"py_modules": [1]}, OptionTypeError),
        ({"py_modules": ["no/such/module"]}, InvalidOptionError),
        ({"py_modules": ["s3://bucket/x.zip"]}, RuntimeEnvSetupError),
        ({"py_modules": [sys]}, InvalidOptionError),
        ({"excludes": "a"}, OptionTypeError),
        ({"pip": 1}, OptionTypeError),
        ({"pip": [1]}, OptionTypeError),
        ({"pip": "no/such/requirements.txt"}, InvalidOptionError),
        ({"pip": {"pip_check": True}}, InvalidOptionError),
        ({"pip": {"packages": ["x"], "pip_chek": True}}, InvalidOptionError),
        ({"pip": {"packages": ["x"], "pip_check": 1}}, OptionTypeError),
        ({"pip": {"packages": ["x"], "pip_version": 22}}, OptionTypeError),
        ({"pip": {"packages": ["x"], "pip_install_options": "--no-index"}}, OptionTypeError),
        ({"uv": {"packages": ["x"], "pip_check": True}}, InvalidOptionError),
        ({"pip": ["x"], "uv": ["y"]}, InvalidOptionError),
        ({"config": 1}, OptionTypeError),
        ({"config": {"setup_timeout_seconds": "1"}}, OptionTypeError),
        ({"config": {"setup_timeout_seconds": 0}}, InvalidOptionError),
        ({"worker_process_setup_hook": 1}, OptionTypeError),
        ({"worker_process_setup_hook": "function"}, InvalidOptionError),
        ({"py_executable": 1}, OptionTypeError),
        ({"py_executable": ""}, InvalidOptionError),
        ({"py_executable": "python '"}, InvalidOptionError),
        ({1: 2}, OptionTypeError),
    ],
)
def test_bad_runtime_envs_are_refused(fields, error):
    with pytest.raises(error) as caught:
        parse_runtime_env(fields)
    assert type(caught.value) is error
    with pytest.raises(error):
        parse_task_options({"runtime_env": fields})


def test_requirements_are_a_list_however_they_are_given(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# a comment\nsix\n\n  idna==3.4  \nsix\n")
    packages = ["six", "idna==3.4"]
    for given in (str(path), {"packages": str(path)}, ["six", "idna==3.4", "six"]):
        for field in ("pip", "uv"):
            assert RuntimeEnv(**{field: given}) == {field: {"packages": packages, f"{field}_check": False}}
    options = {"packages": ["six"], "pip_check": True, "pip_version": "==23.0", "pip_install_options": ["-q"]}
    assert RuntimeEnv(pip=options).pip_config() == options
    assert RuntimeEnv(pip=[]) == RuntimeEnv(uv=[]) == RuntimeEnv(py_modules=[]) == RuntimeEnv(excludes=[]) == {}


def test_modules_become_paths(tmp_path, monkeypatch):
    import json as package
    import json.decoder as single

    assert RuntimeEnv(py_modules=[package, single]).py_modules() == [package.__path__[0], single.__file__]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "library").mkdir()
    (tmp_path / "given.whl").write_bytes(b"")
    assert RuntimeEnv(py_modules=["library", tmp_path / "given.whl"]).py_modules() == [
        str(tmp_path / "library"), str(tmp_path / "given.whl"),
    ]  # fmt: skip


def test_the_key_of_a_runtime_env_looks_at_no_file(tmp_path, monkeypatch):
    (tmp_path / "job.zip").write_bytes(b"one")
    fields = {"working_dir": str(tmp_path / "job.zip"), "py_modules": [str(tmp_path)], "pip": ["x"]}
    one, same = RuntimeEnv(**fields), RuntimeEnv(**fields)
    (tmp_path / "job.zip").write_bytes(b"another")
    other = RuntimeEnv(**fields)
    for name in ("stat", "scandir", "listdir", "open"):
        monkeypatch.setattr(os, name, None)
    assert one.key() == same.key() != other.key()
    assert hash(one.key()) == hash(same.key())


def test_what_is_private_is_not_shown(tmp_path):
    (tmp_path / "job.zip").write_bytes(b"")
    env = RuntimeEnv(working_dir=str(tmp_path / "job.zip"), worker_process_setup_hook=lambda: None)
    assert env.to_dict() == {
        "working_dir": str(tmp_path / "job.zip"), "worker_process_setup_hook": "<lambda>",
    }  # fmt: skip
    assert parse_runtime_env(dict(env)) == env  # a plain dict of it is as good
    assert pickle.loads(pickle.dumps(env)) == env


def test_fields_that_exclude_each_other_do_so_between_job_and_task():
    job = RuntimeEnv(pip=["a"], worker_process_setup_hook=lambda: None)
    assert "pip" not in RuntimeEnv(uv=["b"]).merged_over(job)
    merged = RuntimeEnv(worker_process_setup_hook="module.function").merged_over(job)
    assert merged["worker_process_setup_hook"] == "module.function"
    assert "_hook" not in merged
    assert merged["pip"] == {"packages": ["a"], "pip_check": False}
    env = RuntimeEnv()
    env.set("env_vars", {"A": "1"})
    assert env == {"env_vars": {"A": "1"}}
    with pytest.raises(OptionTypeError):
        env.set("env_vars", {"A": 1})


def test_unknown_fields_warn_and_stay():
    with pytest.warns(UserWarning, match="did you mean 'env_vars'"):
        assert parse_runtime_env({"env_var": {"A": "1"}}) == {"env_var": {"A": "1"}}


def test_a_runtime_env_merges_over_that_of_its_job():
    job = RuntimeEnv(env_vars={"A": "1", "B": "1"}, config={"x": 1})
    merged = RuntimeEnv(env_vars={"B": "2"}).merged_over(job)
    assert merged == {"env_vars": {"A": "1", "B": "2"}, "config": {"x": 1}}
    assert job.merged_over(None) is job


def test_a_time_limit_is_never_cut_short():
    from fastray.option_checks import to_milliseconds

    assert parse_task_options({"timeout_s": 2}).timeout_s == 2
    assert [to_milliseconds(s) for s in (None, 0.001, 0.0011, 1.5, 4_000_000)] == [0, 1, 2, 1500, 4_000_000_000]
    assert parse_task_options({"timeout_s": 2}) != parse_task_options({"timeout_s": 3})
    with pytest.raises(InvalidOptionError, match=r"from 0\.001 to 4,000,000 seconds"):
        parse_task_options({"timeout_s": 0})
