"""`sys.path` of a worker that goes on as a fresh interpreter, and the fields of RuntimeEnvConfig."""

from __future__ import annotations

import pytest

from fastray.exceptions import InvalidOptionError
from fastray.runtime_env import RuntimeEnv, RuntimeEnvConfig
from fastray.runtime_envs.fresh import path_of

STANDARD = ["/usr/lib/python3.zip", "/usr/lib/python3"]
PARENT = "/parent/lib/python3/site-packages"
OWN = "/env/lib/python3/site-packages"


def test_packages_of_the_environment_come_before_those_of_its_parent():
    drivers = ["/home/me/program", *STANDARD, PARENT]
    own = ["", *STANDARD, OWN, PARENT]
    assert path_of(["/module"], drivers, own, "/fastray") == [
        "/module", "/home/me/program", *STANDARD, OWN, PARENT, "/fastray",
    ]  # fmt: skip


def test_packages_of_another_interpreter_of_the_driver_come_last():
    drivers = ["/home/me", *STANDARD, "/other/site-packages", "/other/dist-packages"]
    assert path_of([], drivers, [*STANDARD, OWN, PARENT], PARENT) == [
        "/home/me", *STANDARD, OWN, PARENT, "/other/site-packages", "/other/dist-packages",
    ]  # fmt: skip


def test_what_comes_first_is_there_once():
    assert path_of(["/a", "/b"], ["/b", "/c"], ["/a", "/b", *STANDARD], "/c") == ["/a", "/b", "/c", *STANDARD]


def test_a_config_has_the_defaults_of_ray():
    assert RuntimeEnvConfig() == {"setup_timeout_seconds": 600, "eager_install": True, "log_files": []}
    env = RuntimeEnv(config=RuntimeEnvConfig(setup_timeout_seconds=5))
    assert env["config"] == {"setup_timeout_seconds": 5, "eager_install": True, "log_files": []}
    with pytest.raises(InvalidOptionError):
        RuntimeEnvConfig(setup_timeout_seconds=0)
    with pytest.raises(TypeError):
        RuntimeEnvConfig(eager_install=1)
