"""runtime_env on one node: modules, archives, installed packages, interpreters, hooks. Across nodes:
test_cluster_runtime_env.py.

No test needs a network: wheels are made by hand.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy
import pytest
from integration_helpers import eventually, node_pid, note, open_gate, tally, wait_for_gate, worker_pids
from runtime_env_helpers import archive, folder, offline, source, waiting_setup, wheel

import fastray
from fastray.exceptions import RuntimeEnvSetupError

GET_S = 60

pytestmark = pytest.mark.usefixtures("node", "module_goes_by_value")


@pytest.fixture(scope="module", autouse=True)
def envs(tmp_path_factory):
    """The user's cache of environments: before `node`, whose workers inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("envs")
        patch.setenv("FASTRAY_ENV_CACHE", str(path))
        yield path


def get(refs):
    return fastray.get(refs, timeout=GET_S)


@fastray.remote
def look(*names):
    import importlib

    found = [importlib.import_module(name) for name in names]
    return [module.value for module in found]


@fastray.remote
def interpreter():
    return {
        "executable": sys.executable,
        "prefix": sys.prefix,
        "path": list(sys.path),
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "numpy": numpy.__file__,
    }


# ---- modules and archives ------------------------------------------------------------------------------------


def test_modules_are_importable_and_their_neighbours_are_not(tmp_path):
    package = folder(tmp_path / "around" / "packed", __init__="value = 'package'\n", part="value = 'part'\n")
    folder(tmp_path / "around", neighbour="value = 'must not be found'\n")
    single = folder(tmp_path / "single", one_file="value = 'file'\n") / "one_file.py"
    zipped = archive(tmp_path / "zipped.zip", from_zip="value = 'zip'\n")
    wheeled = wheel(tmp_path / "wheels", "fastray_wheeled", text="value = 'wheel'\n")
    task = look.options(runtime_env={"py_modules": [str(package), str(single), str(zipped), str(wheeled)]})
    names = ["packed", "packed.part", "one_file", "from_zip", "fastray_wheeled"]
    assert get(task.remote(*names)) == ["package", "part", "file", "zip", "wheel"]
    with pytest.raises(ModuleNotFoundError, match="neighbour"):
        get(task.remote("neighbour"))
    with pytest.raises(ModuleNotFoundError, match="packed"):
        get(look.remote("packed"))


def test_modules_come_before_the_working_directory_and_that_before_all_others(tmp_path, monkeypatch):
    for place in ("module", "directory", "other"):
        folder(tmp_path / place, first=f"value = '{place}'\n", second=f"value = '{place}'\n")
    (tmp_path / "module" / "second.py").unlink()
    environment = {
        "py_modules": [str(tmp_path / "module" / "first.py")],
        "working_dir": str(tmp_path / "directory"),
        "env_vars": {"MY_PATH": "a:${HOME}:${NO_SUCH_VARIABLE}"},
    }
    assert get(look.options(runtime_env=environment).remote("first", "second")) == ["module", "directory"]

    @fastray.remote(runtime_env=environment)
    def in_a_program():
        import subprocess

        program = "import first, second; print(first.value, second.value)"
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
        return done.stdout, os.environ["MY_PATH"]

    assert get(in_a_program.remote()) == ("module directory\n", f"a:{os.environ['HOME']}:")


def test_an_archive_is_a_working_directory_and_another_one_of_that_name_is_another(tmp_path):
    path = archive(tmp_path / "job.zip", of_archive="value = 1\n")
    first = look.options(runtime_env={"working_dir": str(path)})
    assert get(first.remote("of_archive")) == [1]
    archive(path, of_archive="value = 'another'\n")
    assert get(look.options(runtime_env={"working_dir": str(path)}).remote("of_archive")) == ["another"]


def test_an_archive_that_is_none_is_a_typed_error(tmp_path):
    (tmp_path / "job.zip").write_bytes(b"no archive")
    with pytest.raises(RuntimeEnvSetupError, match=r"job\.zip.*not a zip"):
        get(look.options(runtime_env={"working_dir": str(tmp_path / "job.zip")}).remote())


# ---- pip -----------------------------------------------------------------------------------------------------


def test_a_requirement_is_there_with_the_packages_of_the_parent_and_wins_over_them(tmp_path):
    mine = wheel(tmp_path, "fastray_mine", text="value = 'mine'\n")
    wheel(tmp_path, "cloudpickle_of_nobody", text="value = 1\n")
    newer = wheel(tmp_path, "psutil", version="99.0", text="value = 'newer'\n")
    environment = {"pip": offline(mine, "psutil==99.0", where=newer.parent)}
    assert get(look.options(runtime_env=environment).remote("fastray_mine", "psutil")) == ["mine", "newer"]
    found = get(interpreter.options(runtime_env=environment).remote())
    assert found["prefix"] != sys.prefix
    assert found["numpy"] == numpy.__file__
    assert found["parent"] == node_pid()
    assert found["group"] == found["pid"]  # what ends a worker's children
    with pytest.raises(ModuleNotFoundError):
        get(look.remote("fastray_mine"))


def test_one_environment_for_the_same_requirements_and_it_is_kept(tmp_path, envs, run_program):
    path = wheel(tmp_path, "fastray_kept", text="value = 1\n")

    def prefixes(**options):
        environment = {"pip": offline(path, **options)}
        refs = [interpreter.options(runtime_env=environment, num_cpus=n).remote() for n in (1, 2, 0.5)]
        return {row["prefix"] for row in get(refs)}

    first = prefixes()
    assert len(first) == 1
    assert first == prefixes()
    assert first.isdisjoint(prefixes(pip_check=True))
    before = set(os.listdir(envs))
    run_program(
        """
        import sys
        import fastray

        fastray.init(num_cpus=1)
        packages, options, prefix = [sys.argv[1]], sys.argv[2].split(), sys.argv[3]

        @fastray.remote(runtime_env={"pip": {"packages": packages, "pip_install_options": options}})
        def look():
            import fastray_kept
            return fastray_kept.value, sys.prefix

        assert fastray.get(look.remote(), timeout=60) == (1, prefix)
        """,
        str(path), " ".join(offline()["pip_install_options"]), *first,
    )  # fmt: skip
    assert set(os.listdir(envs)) == before


def test_a_local_file_that_changed_is_installed_again(tmp_path):
    environment = {"pip": offline(wheel(tmp_path, "fastray_changed", text="value = 1\n"))}
    assert get(look.options(runtime_env=environment).remote("fastray_changed")) == [1]
    wheel(tmp_path, "fastray_changed", text="value = 'changed'\n")
    assert get(look.options(runtime_env=environment, num_cpus=2).remote("fastray_changed")) == ["changed"]


def test_a_requirements_file_and_an_actor(tmp_path):
    wheel(tmp_path / "wheels", "fastray_required", text="value = 'required'\n")
    (tmp_path / "requirements.txt").write_text(
        f"--no-index\n--find-links {tmp_path / 'wheels'}\n# a comment\nfastray_required==1.0\n"
    )

    @fastray.remote(runtime_env={"pip": str(tmp_path / "requirements.txt")}, max_restarts=1, max_task_retries=-1)
    class Actor:
        def look(self):
            import fastray_required

            return fastray_required.value, os.getpid()

    actor = Actor.remote()
    value, pid = get(actor.look.remote())
    os.kill(pid, 9)
    again, other = get(actor.look.remote())
    assert value == again == "required"
    assert pid != other


def test_what_cannot_be_installed_fails_every_task_and_the_next_one_tries_again(tmp_path):
    where = tmp_path / "wheels"
    where.mkdir()
    environment = {"pip": offline("fastray_missing", where=where)}
    task = look.options(runtime_env=environment)
    for ref in [task.remote("fastray_missing") for _ in range(20)]:
        with pytest.raises(RuntimeEnvSetupError, match=r"(?s)fastray_missing.*could not be installed.*No matching"):
            get(ref)

    @fastray.remote(runtime_env=environment)
    class Actor:
        def look(self):
            return 1

    with pytest.raises(RuntimeEnvSetupError, match="No matching distribution") as caught:
        get(Actor.remote().look.remote())
    assert isinstance(caught.value, fastray.exceptions.ActorDiedError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    wheel(where, "fastray_missing", text="value = 'there now'\n")
    # workers that refused its tasks leave when there are no more
    assert eventually(lambda: get(_value_or_none(task, "fastray_missing")) == ["there now"])


@fastray.remote
def _caught(refs):
    try:
        return fastray.get(refs[0])
    except RuntimeEnvSetupError:
        return None


def _value_or_none(task, name):
    return _caught.remote([task.remote(name)])


def test_packages_that_do_not_go_together_are_refused_by_pip_check(tmp_path):
    path = wheel(tmp_path, "fastray_needy", requires=["fastray_nowhere"])
    options = [*offline()["pip_install_options"], "--no-deps"]
    fields = {"packages": [str(path)], "pip_install_options": options}
    assert get(look.options(runtime_env={"pip": fields}).remote("fastray_needy")) == [1]
    with pytest.raises(RuntimeEnvSetupError, match=r"(?s)pip check.*fastray.nowhere"):
        get(look.options(runtime_env={"pip": {**fields, "pip_check": True}}).remote("fastray_needy"))


def test_tasks_run_while_requirements_are_installed(tmp_path):
    """On both CPUs: who installs needs none. The installation waits for them."""
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    slow = source(tmp_path, "fastray_slow", setup=waiting_setup(begun, gate))
    options = [*offline()["pip_install_options"], "--no-build-isolation"]
    environment = {"pip": {"packages": [str(slow)], "pip_install_options": options}}
    refs = [look.options(runtime_env=environment).remote("fastray_slow") for _ in range(8)]
    assert eventually(begun.exists)

    @fastray.remote
    def together(mine, other):
        open_gate(mine)
        wait_for_gate(other)
        return os.getpid()

    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert len(set(get([together.remote(one, two), together.remote(two, one)]))) == 2
    assert len(worker_pids()) <= 6  # not one for each task that waits
    open_gate(gate)
    assert get(refs) == [[1]] * 8


def test_an_installation_has_a_time_limit(tmp_path):
    slow = source(tmp_path, "fastray_endless", setup="import time; time.sleep(60)")
    options = [*offline()["pip_install_options"], "--no-build-isolation"]
    environment = {
        "pip": {"packages": [str(slow)], "pip_install_options": options},
        "config": {"setup_timeout_seconds": 2},
    }
    with pytest.raises(RuntimeEnvSetupError, match="within 2 s"):
        get(look.options(runtime_env=environment).remote("fastray_endless"))


@pytest.mark.skipif(shutil.which("uv") is None, reason="needs the program uv")
def test_uv_installs_too(tmp_path):
    path = wheel(tmp_path, "fastray_by_uv", text="value = 'uv'\n")
    fields = {"packages": [str(path)], "uv_pip_install_options": ["--no-index", "--no-cache"], "uv_check": False}
    assert get(look.options(runtime_env={"uv": fields}).remote("fastray_by_uv")) == ["uv"]


def test_without_uv_it_says_so(tmp_path, monkeypatch):
    environment = {"uv": ["x"], "env_vars": {"PATH": str(tmp_path)}}
    with pytest.raises(RuntimeEnvSetupError, match="program uv"):
        get(look.options(runtime_env=environment).remote())


# ---- interpreters and hooks ----------------------------------------------------------------------------------


def test_variables_that_an_interpreter_reads_at_its_start_count(tmp_path):
    folder(tmp_path, by_variable="value = 'found'\n")

    @fastray.remote(runtime_env={"env_vars": {"PYTHONHASHSEED": "7", "PYTHONPATH": str(tmp_path)}})
    def hashed():
        import by_variable

        return hash("fastray"), os.environ["PYTHONHASHSEED"], by_variable.value

    import subprocess

    program = "print(hash('fastray'))"
    environ = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=True)
    assert get(hashed.remote()) == (int(done.stdout), "7", "found")


def test_another_command_for_the_interpreter(tmp_path):
    @fastray.remote(runtime_env={"py_executable": f"{sys.executable} -X dev"})
    def look_at_flags():
        return sys.flags.dev_mode, os.getppid()

    assert get(look_at_flags.remote()) == (True, node_pid())
    with pytest.raises(RuntimeEnvSetupError, match="no/such/python"):
        get(look.options(runtime_env={"py_executable": "/no/such/python"}).remote())
    with pytest.raises(RuntimeEnvSetupError, match="same Python"):
        get(look.options(runtime_env={"py_executable": "/bin/true"}).remote())
    with pytest.raises(RuntimeEnvSetupError, match="neither pip nor uv"):
        environment = {"py_executable": sys.executable, "pip": offline(wheel(tmp_path, "fastray_both"))}
        get(look.options(runtime_env=environment).remote())


def test_a_fresh_worker_is_a_worker_like_any_other(tmp_path, capfd):
    @fastray.remote(runtime_env={"py_executable": sys.executable})
    def nested(n):
        print("printed by a fresh worker")
        return n if n == 0 else fastray.get(nested.remote(n - 1)) + 1

    assert get(nested.remote(3)) == 3
    assert eventually(lambda: "printed by a fresh worker" in capfd.readouterr().out)

    @fastray.remote(runtime_env={"py_executable": sys.executable}, max_retries=2)
    def fragile(path):
        note(path)
        if len(tally(path)) < 3:
            os.kill(os.getpid(), 9)
        return os.getpid()

    get(fragile.remote(str(tmp_path / "tally")))
    assert len(tally(tmp_path / "tally")) == 3
    ref = nested.options(runtime_env={"py_executable": sys.executable}, num_cpus=1).remote(0)
    assert get(ref) == 0

    @fastray.remote(runtime_env={"py_executable": sys.executable})
    def endless(path):
        note(path)
        wait_for_gate(path + ".gate")

    ref = endless.remote(str(tmp_path / "endless"))
    assert eventually(lambda: tally(tmp_path / "endless"))
    fastray.cancel(ref)
    with pytest.raises(fastray.exceptions.TaskCancelledError):
        get(ref)


def test_a_hook_runs_once_in_each_worker_before_its_tasks(tmp_path):
    def hook():
        os.environ["BY_HOOK"] = "1"
        note(str(tmp_path / "tally"), os.getpid())

    @fastray.remote
    def read():
        return os.environ.get("BY_HOOK"), os.getpid(), fastray.get_runtime_context().runtime_env

    rows = get([read.options(runtime_env={"worker_process_setup_hook": hook}).remote() for _ in range(10)])
    assert {row[0] for row in rows} == {"1"}
    assert rows[0][2] == {"worker_process_setup_hook": "hook"}
    pids = tally(tmp_path / "tally")
    assert len(pids) == len(set(pids))
    assert {str(row[1]) for row in rows} <= set(pids)
    assert get(read.remote())[0] is None

    folder(tmp_path / "lib", hooks="import os\ndef set_it(): os.environ['BY_HOOK'] = 'named'\n")
    named = {"worker_process_setup_hook": "hooks.set_it", "working_dir": str(tmp_path / "lib")}
    assert get(read.options(runtime_env=named).remote())[0] == "named"


def test_a_hook_that_fails_is_a_typed_error():
    def hook():
        raise ValueError("no hook")

    with pytest.raises(RuntimeEnvSetupError, match="no hook"):
        get(look.options(runtime_env={"worker_process_setup_hook": hook}).remote())
    with pytest.raises(RuntimeEnvSetupError, match="no_such_module"):
        get(look.options(runtime_env={"worker_process_setup_hook": "no_such_module.f"}).remote())


# ---- with other features -------------------------------------------------------------------------------------


def test_a_task_of_an_environment_is_replayed_with_it(tmp_path):
    path = wheel(tmp_path, "fastray_replayed", text="value = 'replayed'\n")
    library = folder(tmp_path / "library", __init__="value = 'library'\n")
    directory = folder(tmp_path / "directory", of_directory="value = 'directory'\n")
    environment = {"pip": offline(path), "py_modules": [str(library)], "working_dir": str(directory)}

    @fastray.remote(runtime_env=environment)
    def read():
        import fastray_replayed
        import library
        import of_directory

        return fastray_replayed.value, library.value, of_directory.value

    ref = read.remote()
    assert get(ref) == ("replayed", "library", "directory")
    before, here = list(sys.path), os.getcwd()
    assert fastray.replay(ref) == ("replayed", "library", "directory")
    assert (sys.path, os.getcwd()) == (before, here)
    for name in ("fastray_replayed", "library", "of_directory"):
        del sys.modules[name]


def test_the_environment_is_a_part_of_what_a_cached_result_depends_on(tmp_path):
    def make(value):
        return folder(tmp_path / f"modules{value}", of_cache=f"value = {value}\n") / "of_cache.py"

    def read(n):
        import of_cache

        return of_cache.value + n

    cached = fastray.remote(cache={"path": str(tmp_path / "cache")})(read)
    for value in (1, 2, 1):
        assert get(cached.options(runtime_env={"py_modules": [str(make(value))]}).remote(10)) == 10 + value


def test_declaring_a_runtime_env_walks_no_directory(tmp_path, monkeypatch):
    directory = folder(tmp_path / "directory", a="value = 1\n")
    monkeypatch.setattr(os, "scandir", None)
    monkeypatch.setattr(os, "walk", None)
    environment = {"working_dir": str(directory), "py_modules": [str(directory)]}
    one = look.options(runtime_env=environment)
    assert one is look.options(runtime_env=environment)


def test_the_cache_of_environments_is_closed_to_others(envs):
    assert Path(envs).stat().st_mode & 0o077 == 0
