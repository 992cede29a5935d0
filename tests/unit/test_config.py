"""What `init` is told and what it finds out: made-up /proc and /sys trees, and the checks of its
arguments.
"""

from __future__ import annotations

import os

import pytest

from fastray import config
from fastray.exceptions import (
    InvalidOptionError,
    OptionTypeError,
    RuntimeEnvSetupError,
    UnknownInitOptionError,
)

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path):
    """Writes files of a machine: machine("proc/meminfo", text)."""

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(tmp_path)

    write(
        "proc/meminfo",
        f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 5 kB\nMemAvailable: {10 * GIB // 1024} kB\n",
    )
    write("proc/self/cgroup", "0::/\n")
    write.root = str(tmp_path)
    return write


@pytest.fixture
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.usefixtures("eight_cpus")
class TestCpus:
    def test_affinity_counts_without_a_quota(self, machine):
        assert config.detect_cpus(machine.root) == 8
        machine("sys/fs/cgroup/cpu.max", "max 100000\n")
        assert config.detect_cpus(machine.root) == 8

    @pytest.mark.parametrize(("quota", "cpus"), [(250000, 2), (50000, 1), (1600000, 8)])
    def test_the_quota_of_version_2(self, machine, quota, cpus):
        machine("sys/fs/cgroup/cpu.max", f"{quota} 100000\n")
        assert config.detect_cpus(machine.root) == cpus

    def test_the_least_quota_of_all_groups_above(self, machine):
        machine("proc/self/cgroup", "0::/outer/inner\n")
        machine("sys/fs/cgroup/outer/cpu.max", "300000 100000\n")
        machine("sys/fs/cgroup/outer/inner/cpu.max", "500000 100000\n")
        assert config.detect_cpus(machine.root) == 3

    def test_a_path_that_the_container_does_not_see(self, machine):
        machine("proc/self/cgroup", "0::/../docker/abc\n")
        machine("sys/fs/cgroup/cpu.max", "400000 100000\n")
        assert config.detect_cpus(machine.root) == 4

    def test_the_quota_of_version_1(self, machine):
        machine("proc/self/cgroup", "5:cpuacct,cpu:/docker/x\n4:memory:/docker/x\n")
        machine("sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "200000\n")
        machine("sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000\n")
        machine("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
        machine("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
        assert config.detect_cpus(machine.root) == 2


class TestMemory:
    def test_the_machine_without_limits(self, machine):
        assert config.detect_memory_bytes(machine.root) == 16 * GIB
        assert config.detect_available_bytes(machine.root) == 10 * GIB

    def test_version_2(self, machine):
        machine("sys/fs/cgroup/memory.max", f"{4 * GIB}\n")
        machine("sys/fs/cgroup/memory.current", f"{GIB}\n")
        assert config.detect_memory_bytes(machine.root) == 4 * GIB
        assert config.detect_available_bytes(machine.root) == 3 * GIB
        machine("sys/fs/cgroup/memory.max", "max\n")
        assert config.detect_memory_bytes(machine.root) == 16 * GIB

    def test_version_1_and_its_number_for_no_limit(self, machine):
        machine("proc/self/cgroup", "4:memory:/\n")
        machine("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        assert config.detect_memory_bytes(machine.root) == 16 * GIB
        machine("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2 * GIB}\n")
        assert config.detect_memory_bytes(machine.root) == 2 * GIB

    def test_the_store_is_three_tenths_in_whole_pages(self, machine):
        store = config.default_object_store_bytes(machine.root)
        assert store % config.PAGE_BYTES == 0
        assert 0 <= 3 * GIB - store < config.PAGE_BYTES
        machine("proc/meminfo", "MemTotal: 1024 kB\nMemAvailable: 1024 kB\n")
        assert config.default_object_store_bytes(machine.root) >= config.OBJECT_STORE_BYTES_MIN
        machine("proc/meminfo", f"MemTotal: {2**40} kB\nMemAvailable: {2**40} kB\n")
        assert config.default_object_store_bytes(machine.root) <= config.OBJECT_STORE_BYTES_MAX

    def test_this_machine(self):
        assert 1 <= config.detect_cpus() <= os.cpu_count()
        assert 0 < config.detect_available_bytes() <= config.detect_memory_bytes()
        assert config.detect_gpus() >= 0


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [(None, 4), ("", 0), ("0,1", 2), ("-1", 0), ("0,-1,2", 1), ("0,1,2,3,4,5", 4), ("GPU-a", 1)],
)
def test_gpus_are_those_that_are_visible(machine, visible, gpus):
    for i in range(4):
        machine(f"proc/driver/nvidia/gpus/{i}/information", "")
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert config.detect_gpus(machine.root, environ) == gpus


def test_no_driver_means_no_gpu(machine):
    assert config.detect_gpus(machine.root, {"CUDA_VISIBLE_DEVICES": "0,1"}) == 0


def test_defaults_of_init():
    made = config.parse_init()
    assert (made.address, made.num_cpus, made.namespace, made.object_store_memory) == (None, None, None, None)
    assert made.log_to_driver is True
    assert made.ignore_reinit_error is made.local_mode is False
    assert made.resources == made.labels == made.system_config == {}
    assert "num_cpus=None" in repr(made)
    with pytest.raises(AttributeError, match="immutable"):
        made.num_cpus = 3


def test_arguments_of_init_are_kept():
    made = config.parse_init(
        address="10.0.0.1:6379",
        num_cpus=4.0,
        num_gpus=1,
        resources={"disk": 2},
        labels={"zone": "a"},
        object_store_memory=GIB,
        namespace="n",
        log_to_driver=None,
        runtime_env={"env_vars": {"A": "1"}},
        _memory=5 * GIB,
    )
    assert (made.address, made.num_cpus, made.namespace, made.memory) == ("10.0.0.1:6379", 4, "n", 5 * GIB)
    assert made.log_to_driver is True
    assert made.runtime_env.env_vars() == {"A": "1"}
    assert made.node_resources() == {
        "CPU": 4,
        "GPU": 1,
        "memory": 5 * GIB,
        "object_store_memory": GIB,
        "disk": 2,
    }


def test_resources_that_were_not_given_are_found_out():
    found = config.parse_init(num_gpus=0).node_resources()
    assert found["CPU"] == config.detect_cpus()
    assert found["memory"] > 0
    assert found["object_store_memory"] >= config.OBJECT_STORE_BYTES_MIN
    assert "GPU" not in found


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("num_cpus", -1, InvalidOptionError),
        ("num_cpus", 1.5, InvalidOptionError),
        ("num_cpus", float("nan"), InvalidOptionError),
        ("num_cpus", float("inf"), InvalidOptionError),
        ("num_cpus", "1", OptionTypeError),
        ("num_cpus", True, OptionTypeError),
        ("num_gpus", -1, InvalidOptionError),
        ("resources", [1], OptionTypeError),
        ("resources", {1: 1}, OptionTypeError),
        ("resources", {"CPU": 1}, InvalidOptionError),
        ("resources", {"a": 1.5}, InvalidOptionError),
        ("resources", {"a": -1}, InvalidOptionError),
        ("labels", [1], OptionTypeError),
        ("labels", {"a": 1}, OptionTypeError),
        ("object_store_memory", -1, InvalidOptionError),
        ("object_store_memory", 1000, InvalidOptionError),
        ("address", "", InvalidOptionError),
        ("address", "host", InvalidOptionError),
        ("address", "host:99999", InvalidOptionError),
        ("address", 1, OptionTypeError),
        ("namespace", "", InvalidOptionError),
        ("namespace", 1, OptionTypeError),
        ("log_to_driver", "yes", OptionTypeError),
        ("logging_level", 1.5, OptionTypeError),
        ("runtime_env", 1, OptionTypeError),
        ("runtime_env", {"conda": "x"}, RuntimeEnvSetupError),
        ("_system_config", 1, OptionTypeError),
        ("_memory", -5, InvalidOptionError),
    ],
)
def test_bad_arguments_of_init_are_refused(option, value, error):
    with pytest.raises(error) as caught:
        config.parse_init(**{option: value})
    assert type(caught.value) is error
    assert option in str(caught.value)


def test_unknown_arguments_of_init_are_refused_as_in_ray():
    with pytest.raises(UnknownInitOptionError, match="did you mean num_cpus") as caught:
        config.parse_init(num_cpu=1)
    assert isinstance(caught.value, RuntimeError)
    assert caught.value.suggestion == "num_cpus"


def test_what_has_no_effect_is_said():
    with pytest.warns(UserWarning, match="bogus"):
        assert config.parse_init(_system_config={"bogus": 1}).system_config == {}
    with pytest.warns(UserWarning, match="_temp_dir"):
        config.parse_init(_temp_dir="x")
