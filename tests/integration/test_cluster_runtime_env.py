"""Files of a runtime_env on two nodes of this machine: the second has copies, however the first one's change.

    far      what only the second node has; a task that asks for it runs there
    driver   of the head, for the module
"""

from __future__ import annotations

import os
import shutil
import sys

import pytest

pytest.importorskip("grpc")
pytest.importorskip("pyarrow")

from integration_helpers import eventually, open_gate, wait_for_gate
from runtime_env_helpers import archive, folder, offline, wheel

import fastray
from fastray.cluster_utils import Cluster
from fastray.exceptions import RuntimeEnvSetupError
from fastray.runtime_envs import packages

GET_S = 60



def far(function=None, **options):
    remote = fastray.remote(resources={"far": 0.01}, num_cpus=0, **options)
    return remote if function is None else remote(function)


pytestmark = pytest.mark.usefixtures("module_goes_by_value")


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRAY_TMPDIR", str(tmp_path_factory.mktemp("runtime")))
        patch.setenv("FASTRAY_ENV_CACHE", str(tmp_path_factory.mktemp("envs")))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        made.far_node = made.add_node(num_cpus=2, resources={"far": 4})
        made.wait_for_nodes()
        fastray.init(address=made.address)
        yield made
        fastray.shutdown()
        made.shutdown()


def get(refs):
    return fastray.get(refs, timeout=GET_S)


def files(node):
    """Names in the node's store of runtime_envs."""
    return sorted(os.listdir(os.path.join(node.session_path, "env")))


@far
def look(*names):
    """Where it runs, what it reads, what it imports, from where."""
    import importlib

    found = [importlib.import_module(name) for name in names]
    return {
        "cwd": os.getcwd(),
        "files": sorted(os.listdir(".")),
        "values": [module.value for module in found],
        "places": [module.__file__ for module in found],
        "node": fastray.get_runtime_context().get_node_id(),
    }


# ---- working_dir -------------------------------------------------------------------------------------------


def test_a_directory_is_copied_to_another_node_and_used_as_it_is_on_its_own(cluster, tmp_path):
    source = folder(tmp_path / "source", mine="value = 'first'\n")
    (source / "data").mkdir()
    (source / "data" / "script.sh").write_text("#!/bin/sh\necho hello\n")
    (source / "data" / "script.sh").chmod(0o755)
    environment = {"working_dir": str(source)}
    there = look.options(runtime_env=environment)
    first = get(there.remote("mine"))
    assert first["values"] == ["first"]
    assert first["files"] == ["data", "mine.py"]
    assert first["node"] == cluster.far_node.node_id
    assert first["cwd"].startswith(cluster.far_node.session_path)
    here = get(look.options(runtime_env=environment, resources={}).remote("mine"))
    assert os.path.samefile(here["cwd"], source)

    @far(runtime_env=environment)
    def run():
        import subprocess

        return subprocess.run(["data/script.sh"], capture_output=True, text=True, check=True).stdout

    shutil.rmtree(source)
    assert get(run.remote()) == "hello\n"  # another class, so another worker: of the copy, though the source is gone
    assert get(there.options(num_cpus=1).remote("mine"))["values"] == ["first"]


def test_the_same_files_are_packed_and_fetched_once(cluster, tmp_path):
    one = folder(tmp_path / "one", same="value = 'same content'\n")
    two = folder(tmp_path / "two", same="value = 'same content'\n")
    before = files(cluster.far_node)
    places = [get(look.options(runtime_env={"working_dir": str(at)}).remote("same"))["cwd"] for at in (one, two)]
    assert places[0] == places[1]
    new = set(files(cluster.far_node)) - set(before)
    assert len([name for name in new if name.endswith(".zip")]) == 1


def test_what_is_excluded_stays_behind(cluster, tmp_path):
    source = folder(tmp_path / "source", kept="value = 1\n", dropped="value = 2\n", ignored="value = 3\n")
    (source / "build").mkdir()
    (source / "build" / "big.bin").write_bytes(b"x" * 1000)
    (source / ".gitignore").write_text("/ignored.py\nbuild/\n")
    environment = {"working_dir": str(source), "excludes": ["drop*.py"]}
    assert get(look.options(runtime_env=environment).remote("kept"))["files"] == [".gitignore", "kept.py"]


def test_an_archive_is_unpacked_on_every_node(cluster, tmp_path):
    path = archive(tmp_path / "job.zip", unpacked="value = 'zip'\n", inner__module="value = 2\n")
    for resources, node in (({"far": 0.01}, cluster.far_node), ({}, cluster.head_node)):
        found = get(look.options(runtime_env={"working_dir": str(path)}, resources=resources).remote("unpacked"))
        assert found["values"] == ["zip"]
        assert found["cwd"].startswith(node.session_path)


def test_children_of_a_remote_task_have_its_directory(cluster, tmp_path):
    source = folder(tmp_path / "source", inherited="value = 'inherited'\n")

    @far(runtime_env={"working_dir": str(source)})
    def parent():
        return fastray.get([look.remote("inherited"), look.options(resources={}).remote("inherited")])

    there, anywhere = get(parent.remote())
    assert there["values"] == anywhere["values"] == ["inherited"]


def test_a_function_that_a_remote_task_calls_brings_its_own_directory(cluster, tmp_path):
    source = folder(tmp_path / "source", carried="value = 'carried'\n")
    inner = look.options(runtime_env={"working_dir": str(source)})

    @far
    def outer():
        return fastray.get(inner.remote("carried"))

    assert get(outer.remote())["values"] == ["carried"]


def test_an_actor_on_another_node_has_its_directory_and_has_it_again_when_it_restarts(cluster, tmp_path):
    source = folder(tmp_path / "source", of_actor="value = 'actor'\n")

    @fastray.remote(resources={"far": 0.01}, max_restarts=1, max_task_retries=-1)
    class Reader:
        def read(self):
            import of_actor

            return of_actor.value, os.getpid(), os.getcwd()

    reader = Reader.options(runtime_env={"working_dir": str(source)}).remote()
    value, pid, where = get(reader.read.remote())
    shutil.rmtree(source)
    os.kill(pid, 9)
    again, other, same = get(reader.read.remote())
    assert (value, again) == ("actor", "actor")
    assert pid != other
    assert where == same


def test_what_is_too_large_is_refused_with_the_names_of_the_largest_files(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "BYTES_MAX", 1 << 20)
    source = folder(tmp_path / "source", small="value = 1\n")
    (source / "large.bin").write_bytes(b"\0" * (2 << 20))
    with pytest.raises(RuntimeEnvSetupError, match=r"2\.0 MiB.*1 MiB.*large\.bin \(2\.0 MiB\).*excludes"):
        look.options(runtime_env={"working_dir": str(source)}).remote()


def test_a_directory_that_is_gone_before_it_was_packed_is_a_typed_error(tmp_path):
    source = folder(tmp_path / "source")
    task = look.options(runtime_env={"working_dir": str(source)})
    source.rmdir()
    with pytest.raises(RuntimeEnvSetupError, match="source"):
        task.remote()


# ---- py_modules --------------------------------------------------------------------------------------------


def test_modules_of_every_kind_are_importable_on_every_node(cluster, tmp_path, monkeypatch):
    package = folder(tmp_path / "around" / "packed", __init__="value = 'package'\n", part="value = 'part'\n")
    folder(tmp_path / "around", neighbour="value = 'must not be found'\n")
    single = folder(tmp_path / "single", one_file="value = 'file'\n") / "one_file.py"
    zipped = archive(tmp_path / "zipped.zip", from_zip="value = 'zip'\n")
    wheeled = wheel(tmp_path / "wheels", "fastray_probe", text="value = 'wheel'\n")
    imported = folder(tmp_path / "imported", imported_here="value = 'imported'\n")
    monkeypatch.syspath_prepend(str(imported))
    import imported_here

    given = [str(package), single, str(zipped), str(wheeled), imported_here]
    names = ["packed", "packed.part", "one_file", "from_zip", "fastray_probe", "imported_here"]
    task = look.options(runtime_env={"py_modules": given})
    there, here = get([task.remote(*names), task.options(resources={}).remote(*names)])
    assert there["values"] == here["values"] == ["package", "part", "file", "zip", "wheel", "imported"]
    assert all(place.startswith(cluster.far_node.session_path) for place in there["places"])
    shutil.rmtree(tmp_path / "around")

    with pytest.raises(ModuleNotFoundError, match="neighbour"):
        get(task.remote("neighbour"))
    monkeypatch.delitem(sys.modules, "imported_here")


def test_a_class_of_a_module_travels_by_reference(cluster, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(folder(tmp_path / "lib", shapes="class Square:\n    side = 3\n")))
    import shapes

    @far(runtime_env={"py_modules": [shapes]})
    def area(square):
        return square.side**2, type(square).__module__

    assert get(area.remote(shapes.Square())) == (9, "shapes")
    monkeypatch.delitem(sys.modules, "shapes")


# ---- pip ---------------------------------------------------------------------------------------------------


def test_requirements_are_installed_on_the_node_that_needs_them(cluster, tmp_path):
    path = wheel(tmp_path / "wheels", "fastray_far", text="value = 'installed'\n")
    source = folder(tmp_path / "source", beside="value = 'beside'\n")
    environment = {"pip": offline(path), "working_dir": str(source)}
    found = get(look.options(runtime_env=environment).remote("fastray_far", "beside"))
    assert found["values"] == ["installed", "beside"]
    assert found["node"] == cluster.far_node.node_id


# ---- the end -----------------------------------------------------------------------------------------------


def test_packages_go_when_no_job_and_no_process_needs_them(cluster, tmp_path, run_program):
    source = folder(tmp_path / "source", of_job="value = 'job'\n")
    gate = tmp_path / "gate"
    before = {node: set(files(node)) for node in (cluster.head_node, cluster.far_node)}
    run_program(
        """
        import os, sys
        import fastray

        address, source, gate, tests = sys.argv[1:]
        fastray.init(address=address, namespace="shop", runtime_env={"working_dir": source})

        @fastray.remote(resources={"far": 0.01}, num_cpus=0)
        class Keeper:
            def read(self):
                import of_job
                return of_job.value

        @fastray.remote(resources={"far": 0.01}, num_cpus=0)
        def read():
            import of_job
            return of_job.value

        keeper = Keeper.options(name="keeper", lifetime="detached").remote()
        assert fastray.get([keeper.read.remote(), read.remote()], timeout=60) == ["job", "job"]
        """,
        cluster.address, str(source), str(gate), os.path.dirname(__file__),
    )  # fmt: skip
    new = {node: set(files(node)) - before[node] for node in before}
    assert all(any(name.endswith(".zip") for name in names) for names in new.values())
    fastray.shutdown()
    fastray.init(address=cluster.address, namespace="shop")
    keeper = fastray.get_actor("keeper")
    assert get(keeper.read.remote()) == "job"
    fastray.kill(keeper)
    for node, names in new.items():
        assert eventually(lambda node=node, names=names: not names & set(files(node))), (names, files(node))


def test_a_job_whose_files_are_too_large_starts_nothing(cluster, tmp_path, monkeypatch):
    source = folder(tmp_path / "source")
    (source / "large.bin").write_bytes(b"\0" * (2 << 20))
    monkeypatch.setattr(packages, "BYTES_MAX", 1 << 20)
    fastray.shutdown()
    with pytest.raises(RuntimeEnvSetupError, match=r"large\.bin"):
        fastray.init(address=cluster.address, runtime_env={"working_dir": str(source)})
    assert not fastray.is_initialized()
    fastray.init(address=cluster.address)
    assert get(look.remote())["node"] == cluster.far_node.node_id


def test_a_job_has_its_directory_and_modules_everywhere(cluster, tmp_path):
    source = folder(tmp_path / "source", job_file="value = 'job'\n")
    library = folder(tmp_path / "library", __init__="value = 'library'\n")
    fastray.shutdown()
    fastray.init(
        address=cluster.address, runtime_env={"working_dir": str(source), "py_modules": [str(library)]}
    )
    (source / "job_file.py").write_text("value = 'changed later'\n")
    found = get(look.remote("job_file", "library"))
    assert found["values"] == ["job", "library"]
    assert fastray.get_runtime_context().runtime_env == {
        "working_dir": str(source), "py_modules": [str(library)],
    }  # fmt: skip
    fastray.shutdown()
    fastray.init(address=cluster.address)


def test_several_workers_of_a_node_fetch_it_once(cluster, tmp_path):
    source = folder(tmp_path / "source", fetched="value = 1\n")
    gate = str(tmp_path / "gate")

    @fastray.remote(resources={"far": 1}, num_cpus=0)
    def together():
        import fetched

        wait_for_gate(gate)
        return fetched.value, os.getpid(), os.getcwd()

    refs = [together.options(runtime_env={"working_dir": str(source)}).remote() for _ in range(4)]
    open_gate(gate)
    rows = get(refs)
    assert {row[0] for row in rows} == {1}
    assert len({row[2] for row in rows}) == 1
