"""What tests of runtime_env need: folders with modules, wheels made by hand, archives.

    wheel    a file that pip installs without a network: one module with a value, or with a program that runs when pip
             reads it
"""

from __future__ import annotations

import zipfile


def folder(path, **modules):
    """A directory with `NAME.py` for each module: NAME=text."""
    path.mkdir(parents=True, exist_ok=True)
    for name, text in modules.items():
        (path / f"{name}.py").write_text(text)
    return path


def archive(path, **files):
    """A .zip file; names are given with double underscores for slashes: pack__init=text is pack/init."""
    with zipfile.ZipFile(path, "w") as made:
        for name, text in files.items():
            made.writestr(name.replace("__", "/") + ".py", text)
    return path


def wheel(where, name, version="1.0", text="value = 1\n", requires=()):
    """The path of `NAME-VERSION-py3-none-any.whl`, with the module NAME."""
    where.mkdir(parents=True, exist_ok=True)
    path = where / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {
        f"{name}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as made:
        for file, content in {**files, f"{info}/RECORD": record}.items():
            made.writestr(file, content)
    return path


def source(where, name, version="1.0", setup=""):
    """The path of a directory that pip builds: `setup` runs in the middle of the installation."""
    path = where / name
    path.mkdir(parents=True)
    (path / f"{name}.py").write_text("value = 1\n")
    (path / "setup.py").write_text(
        f"{setup}\nfrom setuptools import setup\nsetup(name={name!r}, version={version!r}, py_modules=[{name!r}])\n"
    )
    return path


def offline(*packages, where=None, **more):
    """The field `pip` for packages that are files, or in the directory `where`."""
    links = [] if where is None else ["--find-links", str(where)]
    options = ["--disable-pip-version-check", "--no-cache-dir", "--no-index", *links]
    return {"packages": [str(package) for package in packages], "pip_install_options": options, **more}


def waiting_setup(begun, gate):
    """For `source`: makes the file `begun`, and waits for `gate`."""
    return (
        f"import os, time\nopen({str(begun)!r}, 'a').close()\n"
        f"while not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)"
    )
