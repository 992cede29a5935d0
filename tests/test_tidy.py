"""Limits and layers that no compiler checks: sizes, who may import what, and nothing of one machine in the
tree.

    source    a file that people write: what git tracks or would, found by walking, so that it works in an
              sdist
    layer     a rule about who may depend on what; design.md has them

Functions of C++ are found by their braces, which is a heuristic: it takes `name(...) {` at namespace or class
level for a function and knows comments, strings and namespaces.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
FOLDERS = ("csrc", "fastray", "tests", "benchmarks", "examples", "ci", "docs", ".ci", ".github")
TEXT = {".py", ".pyx", ".pxd", ".pyi", ".h", ".cpp", ".sh", ".md", ".toml", ".yml", ""}
CODE = {".py", ".pyx", ".pxd", ".h", ".cpp"}
NOT_AT_IMPORT = (
    "asyncio",
    "cloudpickle",
    "dataclasses",
    "google",
    "grpc",
    "msgspec",
    "multiprocessing",
    "numpy",
    "pyarrow",
    "subprocess",
    "unittest",
)


def _sources(suffixes: set[str]) -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.is_file() and path.name != "LICENSE"]
    for folder in FOLDERS:
        for parent, folders, names in os.walk(ROOT / folder):
            folders[:] = [name for name in folders if name not in ("__pycache__", ".hypothesis")]
            found += [Path(parent, name) for name in names]
    return sorted(path for path in found if path.suffix in suffixes and ".so" not in path.name)


def _relative(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


PYTHON = _relative(_sources({".py"}))
CPP = _relative(_sources({".h", ".cpp"}))
CYTHON = _relative(_sources({".pyx", ".pxd"}))


@pytest.mark.parametrize("path", _relative(_sources(CODE)))
def test_files_are_short(path):
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= FILE_LINES_MAX, f"{path} has {lines} lines: where is its seam?"


def test_python_functions_are_short():
    long = []
    for path in PYTHON:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{path}:{node.lineno} {node.name} has {lines} lines")
    assert not long


def cython_functions(text: str) -> list[tuple[str, int, int]]:
    """(name, first line, lines) of each `def`, `cdef` and `cpdef` with a body."""
    lines = text.splitlines()
    found = []
    for start, line in enumerate(lines):
        begins = re.match(r"(\s*)(?:async )?(?:cp?)?def\s.*?(\w+)\(", line)
        if not begins:
            continue
        end = last = start
        while end + 1 < len(lines):
            end += 1
            indent = len(lines[end]) - len(lines[end].lstrip())
            if (
                lines[end].strip()
                and indent <= len(begins.group(1))
                and not lines[end].lstrip().startswith(")")
            ):
                break
            if lines[end].strip():
                last = end
        found.append((begins.group(2), start + 1, last - start + 1))
    return found


def test_cython_functions_are_short():
    assert cython_functions("cdef int f(int a,\n       int b) except -1:\n    a\n\n    b\n\nx = 1\n") == [
        ("f", 1, 5)
    ]
    long = [
        f"{path}:{line} {name} has {lines} lines"
        for path in CYTHON
        for name, line, lines in cython_functions((ROOT / path).read_text())
        if lines > FUNCTION_LINES_MAX
    ]
    assert not long


def _blank(text: str) -> str:
    """C++ without comments, strings and preprocessor lines; newlines stay."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|^[ \t]*#(?:\\\n|[^\n])*'
    return re.sub(pattern, lambda m: "\n" * m.group().count("\n"), text, flags=re.S | re.M)


def cpp_functions(text: str) -> list[tuple[str, int, int]]:
    """(head, first line, lines) of each function body; namespaces, classes and the like are looked into."""
    found = []
    opened: list[tuple[int, str, bool]] = []  # line, head, whether it is a function
    head, head_line, line = "", 1, 1
    for char in _blank(text):
        if char == "{":
            inside = any(function for _, _, function in opened)
            outer = re.search(r"\b(namespace|struct|class|union|enum|extern)\b[^()]*$", head)
            opened.append((head_line, head.strip(), not inside and outer is None and "(" in head))
            head = ""
        elif char == "}":
            if opened:
                start, name, function = opened.pop()
                if function:
                    found.append((name[:60], start, line - start + 1))
            head = ""
        elif char == ";":
            head = ""
        else:
            if not head.strip():
                head_line = line
            head += char
        line += char == "\n"
    return found


def test_cpp_functions_are_short():
    sample = (
        'namespace a {\nstruct S { int x = 1; };\nint f(int n) {\n  if (n) {\n  }\n  return "}"[0];\n}\n}\n'
    )
    assert cpp_functions(sample) == [("int f(int n)", 3, 5)]
    long = [
        f"{path}:{start} {head} has {lines} lines"
        for path in CPP
        for head, start, lines in cpp_functions((ROOT / path).read_text())
        if lines > FUNCTION_LINES_MAX
    ]
    assert not long


def test_every_source_opens_by_saying_what_it_is():
    texts = {path: (ROOT / path).read_text() for path in (*PYTHON, *CPP, *CYTHON)}
    silent = [
        path for path in PYTHON if texts[path].strip() and not ast.get_docstring(ast.parse(texts[path]))
    ]
    silent += [path for path in CPP if not texts[path].startswith("//")]
    pyx = [path for path in CYTHON if path.endswith(".pyx")]  # a .pxd beside it only repeats the fields
    silent += [path for path in pyx if not re.match(r'(#[^\n]*\n)*\s*"""', texts[path])]
    assert not silent


# ---- layers -------------------------------------------------------------------------------------------


def test_the_core_knows_nothing_of_python():
    knowing = [
        path
        for path in CPP
        if re.search(r"#include\s*[<\"]Python\.h|\bPyObject\b", (ROOT / path).read_text())
    ]
    assert [path for path in knowing if path.startswith("csrc/")] == []


def _imports(path: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("grpc", ("fastray/gcs/", "fastray/transfer/")),
        ("sqlite3", ("fastray/gcs/",)),
        ("msgspec", ("fastray/gcs/", "fastray/transfer/")),
        ("pyarrow", ("fastray/transfer/",)),
    ],
)
def test_heavy_packages_have_their_places(package, homes):
    users = [
        p for p in PYTHON if p.startswith("fastray/") and any(n.split(".")[0] == package for n in _imports(p))
    ]
    assert [path for path in users if not path.startswith(homes)] == []


def test_only_the_comparison_of_the_benchmark_imports_ray():
    users = [
        p for p in PYTHON if p.startswith("fastray/") and any(n.split(".")[0] == "ray" for n in _imports(p))
    ]
    assert [path for path in users if not path.startswith("fastray/_benchmark/")] == []


def test_errors_import_nothing_of_the_runtime():
    # crash_report: for the type of an event
    homes = ("exceptions", "usage_errors", "cluster_errors", "task_error", "exception_transport")
    homes += ("crash_errors", "crash_report")
    allowed = {f"fastray.{home}" for home in homes} - {"fastray.exceptions"}
    for path in homes:
        assert {n for n in _imports(f"fastray/{path}.py") if n.startswith("fastray")} <= allowed


def test_only_cpp_pxd_declares_the_core():
    declaring = [
        path
        for path in CYTHON
        if re.search(r'cdef extern from "(?!Python\.h)[\w/]+\.h"', (ROOT / path).read_text())
    ]
    core = {Path(path).name for path in CPP if path.startswith("csrc/")}
    strays = [
        path
        for path in declaring
        if Path(path).name not in ("cpp.pxd", "cpp_link.pxd")
        and core & set(re.findall(r'cdef extern from "(?:.*/)?(\w+\.h)"', (ROOT / path).read_text()))
    ]
    assert strays == []


def test_importing_fastray_is_light():
    program = (
        "import sys; before = set(sys.modules); import fastray; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "fastray" in loaded
    assert sorted(loaded.intersection(NOT_AT_IMPORT)) == []


# ---- the tree -----------------------------------------------------------------------------------------


def test_no_path_of_this_machine_is_in_the_tree():
    local = [text for text in (f"{ROOT.parent}/", f"{Path.home()}/") if text.count("/") > 2]
    found = [
        f"{path}: {text}"
        for path in _relative(_sources(TEXT))
        for text in local
        if text in (ROOT / path).read_text(errors="replace")
    ]
    assert not found


def test_every_extension_has_its_types():
    missing = [
        path for path in CYTHON if path.endswith(".pyx") and not (ROOT / path).with_suffix(".pyi").exists()
    ]
    assert not missing


def test_ruff_is_content():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", str(ROOT)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
