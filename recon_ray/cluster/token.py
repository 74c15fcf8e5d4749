"""Token authentication of Ray, turned on for every cluster that a job starts.

Whoever reaches the ports of a Ray cluster without authentication can run code on it. The token is
the first of ``RAY_AUTH_TOKEN``, the file in ``RAY_AUTH_TOKEN_PATH`` and ``~/.ray/auth_token``; it
is never logged and never written anywhere else.
"""

from __future__ import annotations

import os
import secrets
import stat
from enum import Enum
from pathlib import Path

import grpc

from recon_ray.cluster.workarounds.late_settings import reread_auth_mode
from recon_ray.cluster.workarounds.undocumented import CHECK_ALIVE
from recon_ray.errors import ConfigError

MODE = "RAY_AUTH_MODE"
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
#: How long to wait for an answer from a cluster's address.
CONNECT_SECONDS = 10.0


class Access(Enum):
    """Answer of a cluster."""

    OPEN = "it requires no token"
    GRANTED = "it requires a token and accepts the one here"
    NO_TOKEN = "it requires a token, and this process has none"
    WRONG_TOKEN = "it requires a token and refuses the one here"
    SILENT = "no answer"
    OTHER = "it answers in another way"


#: Answers to a request without token.
_ANSWERS = {
    grpc.StatusCode.OK: Access.OPEN,
    grpc.StatusCode.UNAVAILABLE: Access.SILENT,
    grpc.StatusCode.DEADLINE_EXCEEDED: Access.SILENT,
}


def default_path() -> Path:
    """Return the file in which Ray looks for a token last."""
    return Path.home() / ".ray" / "auth_token"


def token_source() -> str | None:
    """Return the variable or file that this process has its token from, None without one."""
    if os.environ.get(TOKEN):
        return TOKEN
    path = Path(os.environ.get(TOKEN_PATH) or default_path())
    try:
        return str(path) if path.read_text().strip() else None
    except (OSError, UnicodeDecodeError):
        return None


def is_private(source: str) -> bool:
    """Return whether only its owner may read the token's file."""
    return source == TOKEN or not stat.S_IMODE(Path(source).stat().st_mode) & 0o077


def require_token() -> None:
    """Turn authentication on for the cluster that is about to start, unless the user turned it off.

    Without a token, create one that only its owner can read.
    """
    if os.environ.setdefault(MODE, "token") == "token" and token_source() is None:
        _make_token()
    reread_auth_mode()


def _make_token() -> None:
    path = Path(os.environ.get(TOKEN_PATH) or default_path())
    token = secrets.token_hex(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # an empty one
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(token)
    except OSError:  # no home folder, or a read-only one: for this process and its workers only
        os.environ[TOKEN] = token


def join_with_token(address: str) -> Access:
    """Check how a cluster answers, and use the token of this process if it requires one.

    Ray itself retries for minutes with a wrong token, and for ever without one.

    Args:
        address: ``host:port``.

    Raises:
        ConfigError: If the cluster requires another token.
        ConnectionError: If nothing answers.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return Access.OTHER  # Ray has the certificates and reports what is wrong with them
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
        reread_auth_mode()
    return access


def ask(address: str, *, with_token: bool = True) -> Access:
    """Return how a cluster answers, first without a token and then with it.

    Args:
        address: ``host:port`` of the head.
        with_token: Whether to try the token of this process too.
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
        channel.unary_unary(CHECK_ALIVE)(b"", timeout=CONNECT_SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _read_token() -> str | None:
    source = token_source()
    if source is None:
        return None
    return os.environ[TOKEN].strip() if source == TOKEN else Path(source).read_text().strip()
