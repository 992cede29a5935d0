"""Packages: a directory, module or archive as one .zip file whose name is a digest of its bytes.

    package   a .zip file; what a directory gives is always the same bytes: sorted, without times, not compressed
    digest    32 hexadecimal digits of its bytes (BLAKE2b): who fetched it can tell that it is all there
    excluded  what matches `excludes`, a .gitignore or a .rayignore, as in Ray; `__pycache__` too

Links to files and directories are followed, but for those that lead back to a directory they are in. `.gitignore` is
not looked at with FASTRAY_RUNTIME_ENV_IGNORE_GITIGNORE=1. Used by publish.py, setup.py and transfer/packages.py.
"""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from _blake2 import blake2b

from fastray.exceptions import RuntimeEnvSetupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BYTES_MAX = 500 << 20  # of one package; as Ray's
NAMED_MAX = 5  # of the largest files, in the error
COPY_BYTES = 1 << 20
DIGEST_BYTES = 16
EPOCH = (1980, 1, 1, 0, 0, 0)
IGNORE_FILES = (".gitignore", ".rayignore")
NEVER = "__pycache__"

Matcher = "Callable[[str], bool]"


def pack(path: str, target: str, excludes: list[str], prefix: str = "", field: str = "working_dir") -> str:
    """Writes the package of a directory, a .py file or an archive to `target`; its digest. `prefix` goes before the
    names in it. Raises RuntimeEnvSetupError when it is too large or cannot be read.
    """
    try:
        if os.path.isdir(path):
            _pack_files(sorted(_walk(path, excludes)), target, prefix, path, field)
        elif path.endswith(".py"):
            _pack_files([(os.path.basename(path), path)], target, prefix, path, field)
        else:
            _check_size(path, [(path, path)], field)
            shutil.copyfile(path, target)
        return digest_of(target)
    except OSError as error:
        message = f"runtime_env[{field!r}] = {path!r} cannot be packed: {error}"
        raise RuntimeEnvSetupError(message, field=field) from None


def digest_of(path: str) -> str:
    """The digest of a file's bytes."""
    state = blake2b(digest_size=DIGEST_BYTES)
    with open(path, "rb") as file:
        while part := file.read(COPY_BYTES):
            state.update(part)
    return state.hexdigest()


def _pack_files(entries: list[tuple[str, str]], target: str, prefix: str, path: str, field: str) -> None:
    _check_size(path, entries, field)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, source in entries:
            mode = os.stat(source).st_mode
            info = zipfile.ZipInfo(prefix + name, EPOCH)
            info.create_system = 3  # Unix, for the mode
            info.external_attr = (stat.S_IFMT(mode) | (0o755 if mode & 0o100 else 0o644)) << 16
            if name.endswith("/"):
                archive.writestr(info, b"")
                continue
            with open(source, "rb") as file, archive.open(info, "w") as written:
                shutil.copyfileobj(file, written, COPY_BYTES)


def _check_size(path: str, entries: list[tuple[str, str]], field: str) -> None:
    sizes = sorted(((os.path.getsize(source), name) for name, source in entries if name[-1:] != "/"), reverse=True)
    total = sum(size for size, _ in sizes)
    if total > BYTES_MAX:
        largest = ", ".join(f"{name} ({size / (1 << 20):,.1f} MiB)" for size, name in sizes[:NAMED_MAX])
        raise RuntimeEnvSetupError(
            f"runtime_env[{field!r}] = {path!r} has {total / (1 << 20):,.1f} MiB, more than the "
            f"{BYTES_MAX >> 20} MiB that are brought to other nodes. The largest files: {largest}. Leave files out "
            "with runtime_env['excludes'], a .gitignore or a .rayignore.",
            field=field,
        )


# ---- which files ---------------------------------------------------------------------------------------


def _walk(root: str, excludes: list[str]) -> Iterator[tuple[str, str]]:
    """(name in the package, file) of what is not excluded; empty directories too, their names end with a slash."""
    matchers = [_matcher(excludes)] if excludes else []
    yield from _walk_below(root, "", [(matcher, 0) for matcher in matchers], (os.path.realpath(root),))


def _walk_below(
    root: str, below: str, matchers: list[tuple[Callable[[str], bool], int]], inside: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """`matchers` go with how many characters of a name are above the directory whose patterns they are."""
    folder = os.path.join(root, below) if below else root
    matchers = matchers + [(matcher, len(below)) for matcher in _ignored_in(folder)]
    any_entry = False
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = below + entry.name
        is_folder = entry.is_dir()
        shown = f"{name}/" if is_folder else name
        if entry.name == NEVER or any(matcher(shown[above:]) for matcher, above in matchers):
            continue
        any_entry = True
        if not is_folder:
            if entry.is_file():  # a socket, a pipe, a broken link is nothing to copy
                yield name, entry.path
            continue
        real = os.path.realpath(entry.path)
        if real not in inside:
            yield from _walk_below(root, shown, matchers, (*inside, real))
    if below and not any_entry:
        yield below, folder


def _ignored_in(folder: str) -> Iterator[Callable[[str], bool]]:
    for name in IGNORE_FILES:
        if name == IGNORE_FILES[0] and os.environ.get("FASTRAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1":
            continue
        try:
            with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                yield _matcher(file.read().splitlines())
        except (FileNotFoundError, IsADirectoryError):
            continue


def _matcher(patterns: list[str]) -> Callable[[str], bool]:
    try:
        import pathspec
    except ImportError:
        raise RuntimeEnvSetupError(
            "runtime_env: excludes, .gitignore and .rayignore need the package pathspec, of fastray[cluster]",
            field="excludes",
        ) from None
    matches: Callable[[str], bool] = pathspec.GitIgnoreSpec.from_lines(patterns).match_file
    return matches


# ---- unpacking -----------------------------------------------------------------------------------------


def unpack(package: str, target: str) -> None:
    """The files of a package, in the directory `target`, which exists. Raises RuntimeEnvSetupError for what is no .zip
    file, is damaged, or would write outside of `target`.
    """
    try:
        with zipfile.ZipFile(package) as archive:
            for info in archive.infolist():
                _unpack_one(archive, info, target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise RuntimeEnvSetupError(f"runtime_env: {package!r} cannot be unpacked: {error}") from None


def _unpack_one(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: str) -> None:
    name = info.filename
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or ".." in parts:
        raise RuntimeEnvSetupError(f"runtime_env: the archive has a file {name!r}, which is outside of it: refused")
    path = os.path.join(target, *parts)
    if info.is_dir():
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with archive.open(info) as source, open(path, "wb") as file:
        shutil.copyfileobj(source, file, COPY_BYTES)
    mode = info.external_attr >> 16
    if mode & 0o111:
        os.chmod(path, 0o755)
