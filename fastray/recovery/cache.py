"""`@remote(cache=True)`: results by content, across runs, sessions and programs.

    entry     a file with one result, named by its key; complete or not there, since it is renamed into place
    key       digest of the function's code, of its runtime_env and of the arguments (code_digest.py)
    store     a directory of entries, shared by all processes that name it, bounded in bytes; the entry that was used
              longest ago goes first (an entry's modification time is its last use)

A call whose arguments hold no references is looked up where it is made: a hit becomes an object at once, without a
worker. Otherwise the task itself looks, when the values of the references are there (`CachedCall`), and stores what the
function returned. Not stored, so run each time: exceptions, results that hold references, results that cannot be
pickled, calls with references inside of containers or with actor handles.

Where: `cache={"path": ...}`, else FASTRAY_CACHE_DIR, else ~/.cache/fastray. Called by remote_function.py.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
import time
from types import GeneratorType

from fastray._native import pickling
from fastray._native.durable import content_key
from fastray.recovery.code_digest import NotDigestible, digest_of
from fastray.recovery.durable import name_classes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastray.options import TaskOptions

MAGIC = b"FASTRAYC"
HEAD = struct.Struct("<8s16s16sQ")  # magic, key, content_key of what follows, number of parts; then their lengths
FOLDER = f"results-1-{sys.implementation.cache_tag}"  # another format or Python has others
ALIGN = 64
SCAN_PART = 16  # the directory is measured after each 1/16 of its limit that this process has added
LEAVE_PART = 0.9  # eviction goes on to this part of the limit
STALE_S = 3600  # an unfinished file of a process that was killed


class Missing(Exception):
    """There is no such entry."""


def default_directory() -> str:
    return os.environ.get("FASTRAY_CACHE_DIR") or os.path.join(os.path.expanduser("~"), ".cache", "fastray")


class CacheStore:
    """A directory of entries, at most `max_bytes` large (a sixteenth more for each process that adds)."""

    def __init__(self, path: str | None, max_bytes: int) -> None:
        root = os.path.abspath(os.path.expanduser(path or default_directory()))
        self.folder = os.path.join(root, FOLDER)
        self.max_bytes = max_bytes
        self._added: float = max_bytes  # unknown: measure after the first one

    def __reduce__(self) -> tuple[object, ...]:
        return CacheStore, (os.path.dirname(self.folder), self.max_bytes)

    def file_of(self, key: bytes) -> str:
        name = key.hex()
        return os.path.join(self.folder, name[:2], name[2:])

    def load(self, key: bytes) -> Any:
        """The value. Raises Missing when there is none, or it is damaged or cannot be unpickled here."""
        file = self.file_of(key)
        try:
            with open(file, "rb") as stream:
                data = memoryview(stream.read())
            value = unpack(key, data)
            os.utime(file)
        except FileNotFoundError:  # also: evicted since we read it
            raise Missing from None
        except Exception:  # damaged, not readable, or a class is not there
            raise Missing from None
        return value

    def save(self, key: bytes, value: object) -> None:
        """Keeps the value, if it can be pickled and fits. Raises nothing: a full disk only warns."""
        try:
            parts = pack(key, value)
        except Exception:  # a reference, a lock: it is computed each time
            return
        size = sum(len(part) for part in parts)
        if size > self.max_bytes:
            return
        file = self.file_of(key)
        unfinished = f"{file}.{os.getpid()}.{time.monotonic_ns()}.tmp"
        try:
            os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
            with open(unfinished, "xb") as stream:
                stream.writelines(parts)
            os.replace(unfinished, file)
        except OSError as error:
            _remove(unfinished)
            warn_once(f"a result was not cached in {self.folder}: {error.strerror}")
            return
        self._added += size
        if self._added >= self.max_bytes / SCAN_PART:
            self._added = 0
            self.evict()

    def evict(self) -> None:
        """Removes the entries used longest ago until the rest is within the limit, and what was never finished."""
        entries: list[tuple[float, int, str]] = []
        now = time.time()
        for part in _listed(self.folder):
            for entry in _listed(part.path) if part.is_dir() else ():
                try:
                    status = entry.stat()
                except FileNotFoundError:  # somebody else evicts
                    continue
                if not entry.name.endswith(".tmp"):
                    entries.append((status.st_mtime, status.st_size, entry.path))
                elif now - status.st_mtime > STALE_S:
                    _remove(entry.path)
        total = sum(size for _, size, _ in entries)
        if total <= self.max_bytes:
            return
        for _, size, path in sorted(entries):
            if total <= self.max_bytes * LEAVE_PART:
                break
            _remove(path)
            total -= size


def _listed(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:  # gone already, or never made
        pass


# ---- the file of an entry --------------------------------------------------------------------------------


def pack(key: bytes, value: object) -> list[bytes | memoryview]:
    """The parts of an entry's file. Raises what pickling raises."""
    buffers: list[Any] = []
    parts: list[bytes | memoryview] = [pickling.dumps(value, buffers.append)]
    parts += [buffer.raw() for buffer in buffers]
    lengths = struct.pack(f"<{len(parts)}Q", *map(len, parts))
    body: list[bytes | memoryview] = [lengths]
    at = HEAD.size + len(lengths)
    for part in parts:
        padding = -at % ALIGN
        body += [bytes(padding), part]
        at += padding + len(part)
    check = b"".join(content_key(piece) for piece in body)
    return [HEAD.pack(MAGIC, key, content_key(check), len(parts)), *body]


def unpack(key: bytes, data: memoryview) -> Any:
    """The value of an entry's file. Raises ValueError when it is damaged, and what unpickling raises."""
    if len(data) < HEAD.size:
        raise ValueError("cut")
    magic, own_key, check, count = HEAD.unpack(data[: HEAD.size])
    at = HEAD.size + 8 * count
    if magic != MAGIC or own_key != key or at > len(data):
        raise ValueError("not this entry")
    lengths = data[HEAD.size : at]
    pieces, parts = [content_key(lengths)], []
    for length in struct.unpack(f"<{count}Q", lengths):
        start = at + -at % ALIGN
        parts.append(data[start : start + length])
        pieces += [content_key(data[at:start]), content_key(parts[-1])]
        at = start + length
    if at != len(data) or content_key(b"".join(pieces)) != check:
        raise ValueError("damaged")
    return pickle.loads(parts[0], buffers=parts[1:])


_warned = False


def warn_once(text: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        print(f"fastray: {text}", file=sys.stderr, flush=True)


# ---- calls -----------------------------------------------------------------------------------------------


class CachedCall:
    """What the task of a cached function runs: looks once more, calls, stores."""

    def __init__(self, function: Callable[..., Any], name: str, digest: bytes, returns: int, store: CacheStore) -> None:
        name_classes()  # here and in the worker that gets a copy: classes of the program keep their identity
        self.function = function
        self.digest = digest
        self.returns = returns
        self.store = store
        self.__name__ = self.__qualname__ = name

    def __reduce__(self) -> tuple[object, ...]:
        return CachedCall, (self.function, self.__name__, self.digest, self.returns, self.store)

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
        """None for arguments of which it cannot be said what they are."""
        try:
            return digest_of((self.digest, args, sorted(kwargs.items())), references=False, opaque=False)
        except NotDigestible:
            return None

    def __call__(self, key: bytes | None, /, *args: Any, **kwargs: Any) -> Any:
        """`key` as the caller found it; empty when it left that to us."""
        if key == b"":
            key = self.key(args, kwargs)
        if key is not None:
            try:
                return self.store.load(key)
            except Missing:
                pass
        value = self.function(*args, **kwargs)
        if isinstance(value, GeneratorType):  # num_returns of them
            value = list(value)
        if key is not None and (self.returns < 2 or (hasattr(value, "__len__") and len(value) == self.returns)):
            self.store.save(key, value)
        return value


class CachedFunction:
    """A remote function with `cache=`, in one session."""

    def __init__(self, function: Callable[..., Any], name: str, options: TaskOptions, environment: object) -> None:
        """Raises InvalidOptionError for a function whose calls cannot be told apart, or that is a generator."""
        from fastray.exceptions import InvalidOptionError
        from fastray.options import STREAMING, parse_task_options
        from fastray.remote_function import CO_GENERATOR, RemoteFunction, code_flags

        returns = options.returns(bool(code_flags(function) & CO_GENERATOR), name)
        if returns == STREAMING:
            raise InvalidOptionError(
                f"cache=True: {name} is a generator, whose results arrive one by one. Return a list, or give "
                "num_returns as a number.",
                option="cache",
            )
        try:
            seeded = () if options.seed is None else (options.seed,)
            digest = digest_of((function, environment, *seeded), references=False)
        except NotDigestible as error:
            raise InvalidOptionError(
                f"cache=True: {name} refers to {error}, which is another in each run: pass it as an argument",
                option="cache",
            ) from None
        path, max_bytes = options.cache or (None, 0)
        self.returns = returns
        self.call = CachedCall(function, name, digest, returns, CacheStore(path, max_bytes))
        task = RemoteFunction(self.call, parse_task_options({"cache": False, "num_returns": returns}, options))
        task._pickled()  # so that the classes of results are known by their ids when the first comes from the cache
        self.remote = task.remote

    def submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `.remote(*args, **kwargs)` answers: references to the stored results, or to those of a task."""
        from fastray._native.object_ref import ObjectRef
        from fastray._native.objects import put

        key: bytes | None = b""  # the task will find it, when the values of the references are there
        if not any(type(value) is ObjectRef for value in (*args, *kwargs.values())):
            key = self.call.key(args, kwargs)
        if key:
            try:
                value = self.call.store.load(key)
            except Missing:
                pass
            else:
                if self.returns == 1:
                    return put(value)
                return [put(item) for item in value] if self.returns else None
        return self.remote(key, *args, **kwargs)
