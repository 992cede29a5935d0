"""Who may talk to the store: a token, its file, and TLS.

    FASTRAY_AUTH_TOKEN         the token itself
    FASTRAY_AUTH_TOKEN_PATH    its file; else the one the caller names, else ~/.fastray/auth_token
    FASTRAY_AUTH_MODE          "token" (the default), or "disabled", which is allowed on loopback only
    FASTRAY_TLS_SERVER_CERT, FASTRAY_TLS_SERVER_KEY, FASTRAY_TLS_CA_CERT    paths of PEM files

The file is made at the first start, with mode 0600; one that others may read is refused. Names match Ray's.
Called by server.py, client.py and whatever starts them.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import stat
from collections.abc import Mapping
from typing import NamedTuple

from fastray.exceptions import AuthenticationError, InvalidOptionError

TOKEN_CHARS_MIN = 16


def default_path() -> str:
    return os.path.join(os.path.expanduser("~"), ".fastray", "auth_token")


def enabled(environ: Mapping[str, str]) -> bool:
    mode = environ.get("FASTRAY_AUTH_MODE", "token")
    if mode not in ("token", "disabled"):
        raise InvalidOptionError(f'FASTRAY_AUTH_MODE={mode!r} is neither "token" nor "disabled"')
    return mode == "token"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def load_token(
    path: str | None = None, *, create: bool = False, environ: Mapping[str, str] = os.environ
) -> str:
    """The token, or "" when authentication is off. `create` makes the file, for a server's first start.

    Raises AuthenticationError: there is none, others may read it, or it is no token.
    """
    if not enabled(environ):
        return ""
    token = environ.get("FASTRAY_AUTH_TOKEN")
    if token:
        return _checked(token, "FASTRAY_AUTH_TOKEN")
    path = environ.get("FASTRAY_AUTH_TOKEN_PATH") or path or default_path()
    if create:
        _make(path)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read().strip()
    except OSError as error:
        raise AuthenticationError(
            f"no token: {path} cannot be read ({error.strerror}). Copy it from the head node, or set "
            "FASTRAY_AUTH_TOKEN or FASTRAY_AUTH_TOKEN_PATH."
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise AuthenticationError(f"others may read the token in {path}: chmod 600 {path}")
    return _checked(token, path)


def _checked(token: str, source: str) -> str:
    if len(token) < TOKEN_CHARS_MIN or not all("!" <= char <= "~" for char in token):
        raise AuthenticationError(
            f"the token in {source} is not {TOKEN_CHARS_MIN} or more printable ASCII characters without blanks"
        )
    return token


def _make(path: str) -> None:
    """Makes the file unless it is there; complete when it appears, whoever else starts now."""
    if os.path.exists(path):
        return
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    draft = f"{path}.{os.getpid()}.{secrets.token_hex(4)}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first: its token it is
    finally:
        os.unlink(draft)


def matches(given: bytes, token: str) -> bool:
    """In constant time."""
    return hmac.compare_digest(given, token.encode())


def check_bind(host: str, token: str) -> None:
    """Raises InvalidOptionError when a server would serve others without a token."""
    if not token and not is_loopback(host):
        raise InvalidOptionError(
            f"refusing to listen on {host} without a token: other machines could run code here. Leave "
            "FASTRAY_AUTH_MODE unset, or listen on 127.0.0.1."
        )


class Tls(NamedTuple):
    """Contents of the PEM files. A server needs `cert` and `key`, a client only `ca`."""

    ca: bytes
    cert: bytes
    key: bytes


def load_tls(environ: Mapping[str, str] = os.environ, *, server: bool = False) -> Tls | None:
    """None when no variable is set. Raises InvalidOptionError for half a setting or an unreadable file."""
    names = ("FASTRAY_TLS_CA_CERT", "FASTRAY_TLS_SERVER_CERT", "FASTRAY_TLS_SERVER_KEY")
    given = [environ.get(name, "") for name in names]
    if not any(given):
        return None
    missing = [name for name, path in zip(names, given) if not path]
    if (missing and server) or names[0] in missing:
        raise InvalidOptionError(f"TLS needs {' and '.join(missing)} too")
    contents = []
    for name, path in zip(names, given):
        try:
            with open(path or os.devnull, "rb") as file:
                contents.append(file.read())
        except OSError as error:
            raise InvalidOptionError(f"{name}={path} cannot be read: {error.strerror}") from error
    return Tls(*contents)
