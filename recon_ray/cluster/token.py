"""Ray's token authentication: on wherever a cluster is started, and a clear word where it is asked.

Whoever reaches the ports of a Ray cluster without authentication can run code on it. A token is
read, in this order, from ``RAY_AUTH_TOKEN``, the file that ``RAY_AUTH_TOKEN_PATH`` names, and
``~/.ray/auth_token``; it is never logged and never written anywhere else.
"""

from __future__ import annotations

import os
import secrets
import stat
from enum import Enum
from pathlib import Path

import grpc
from ray import _raylet

from recon_ray.errors import ConfigError

MODE = "RAY_AUTH_MODE"
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
#: How long to wait for an answer from a cluster's address.
KNOCK_SECONDS = 10.0
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


class Access(Enum):
    """How a cluster answers."""

    OPEN = "it asks for no token"
    GRANTED = "it asks for a token, and takes the one here"
    NO_TOKEN = "it asks for a token, and there is none here"
    WRONG_TOKEN = "it asks for a token, and refuses the one here"
    SILENT = "no answer"
    OTHER = "it answers in another way"


#: What an answer to a request without token says.
_ANSWERS = {
    grpc.StatusCode.OK: Access.OPEN,
    grpc.StatusCode.UNAVAILABLE: Access.SILENT,
    grpc.StatusCode.DEADLINE_EXCEEDED: Access.SILENT,
}


def default_path() -> Path:
    """Where Ray looks for a token last."""
    return Path.home() / ".ray" / "auth_token"


def token_source() -> str | None:
    """Where the token of this process comes from: a variable or a file; None without one."""
    if os.environ.get(TOKEN):
        return TOKEN
    path = Path(os.environ.get(TOKEN_PATH) or default_path())
    try:
        return str(path) if path.read_text().strip() else None
    except (OSError, UnicodeDecodeError):
        return None


def is_private(source: str) -> bool:
    """Return whether nobody else of this machine may read the file of the token."""
    return source == TOKEN or not stat.S_IMODE(Path(source).stat().st_mode) & 0o077


def require_token() -> None:
    """Turn authentication on for a cluster that is about to be started, unless it is turned off.

    Without a token one is made, readable for its owner only.
    """
    if os.environ.setdefault(MODE, "token") == "token" and token_source() is None:
        _make_token()
    _reread_mode()


def _make_token() -> None:
    path = Path(os.environ.get(TOKEN_PATH) or default_path())
    token = secrets.token_hex(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # an empty one
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(token)
    except OSError:  # no home folder, or a read-only one: only this process and its workers know
        os.environ[TOKEN] = token


def join_with_token(address: str) -> Access:
    """Find out how a cluster answers, and use the token of this process where it asks for one.

    Ray itself tries for minutes where the token is wrong, and without end where there is none.

    Args:
        address: ``host:port``.

    Raises:
        ConfigError: If the cluster asks for another token.
        ConnectionError: If nothing answers.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return Access.OTHER  # Ray has the certificates, and tells what is wrong with them
    access = ask(address)
    if access is Access.SILENT:
        raise ConnectionError("no answer")
    if access in (Access.NO_TOKEN, Access.WRONG_TOKEN):
        raise ConfigError(
            f"cluster.address={address}: the cluster refuses the connection, {access.value}; give "
            f"that of the head in {TOKEN_PATH}=<file> or ~/.ray/auth_token (there: `ray "
            "get-auth-token`)"
        )
    if access is Access.GRANTED:
        os.environ[MODE] = "token"
        _reread_mode()
    return access


def ask(address: str, *, with_token: bool = True) -> Access:
    """Ask a cluster whether it is alive, first without a token and then with it.

    Args:
        address: ``host:port`` of the head.
        with_token: Try the token of this process too.
    """
    with grpc.insecure_channel(address) as channel:
        state = _state_of(channel, None)
        if state is not grpc.StatusCode.UNAUTHENTICATED:
            return _ANSWERS.get(state, Access.OTHER)
        token = _read_token() if with_token else None
        if token is None:
            return Access.NO_TOKEN
        granted = _state_of(channel, token) is grpc.StatusCode.OK
        return Access.GRANTED if granted else Access.WRONG_TOKEN


def _state_of(channel: grpc.Channel, token: str | None) -> grpc.StatusCode:
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    try:
        channel.unary_unary(_CHECK_ALIVE)(b"", timeout=KNOCK_SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _read_token() -> str | None:
    source = token_source()
    if source is None:
        return None
    return os.environ[TOKEN].strip() if source == TOKEN else Path(source).read_text().strip()


def _reread_mode() -> None:
    """Tell Ray, which read the mode when it was imported."""
    config = getattr(_raylet, "Config", None)
    if config is not None:
        config.initialize("")
