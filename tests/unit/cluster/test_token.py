"""Tokens, against a server that answers as Ray's head does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from recon_ray.cluster import token as access
from recon_ray.cluster.token import Access, ask, is_private, join_with_token, token_source
from recon_ray.errors import ConfigError


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A home folder without a token, and no variable that names one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (access.MODE, access.TOKEN, access.TOKEN_PATH, "RAY_USE_TLS"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(access, "reread_auth_mode", lambda: None)  # of the Ray in this process
    return tmp_path


@pytest.fixture
def head() -> Iterator[Callable[..., str]]:
    """Starts servers that ask for a token, or for none, or do not know the question."""
    servers = []

    def start(token: str | None, *, knows: bool = True) -> str:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            given = dict(context.invocation_metadata()).get("authorization")
            if token is not None and given != f"Bearer {token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        class Handler(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails):
                known = knows and details.method.endswith("/CheckAlive")
                return grpc.unary_unary_rpc_method_handler(answer) if known else None

        server = grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers((Handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


def test_every_answer_is_told_apart(head, monkeypatch):
    closed = head("right")
    assert ask(closed) is Access.NO_TOKEN
    monkeypatch.setenv(access.TOKEN, "wrong")
    assert ask(closed) is Access.WRONG_TOKEN
    monkeypatch.setenv(access.TOKEN, "right")
    assert ask(closed) is Access.GRANTED
    assert ask(closed, with_token=False) is Access.NO_TOKEN
    assert ask(head(None)) is Access.OPEN
    assert ask(head(None, knows=False)) is Access.OTHER


def test_a_token_is_used_where_one_is_asked_for_and_only_there(head, monkeypatch):
    monkeypatch.setenv(access.TOKEN, "right")
    assert join_with_token(head(None)) is Access.OPEN
    assert access.MODE not in access.os.environ
    assert join_with_token(head("right")) is Access.GRANTED
    assert access.os.environ[access.MODE] == "token"


def test_a_refusal_names_the_remedy_and_no_token_and_with_tls_ray_asks(head, monkeypatch):
    monkeypatch.setenv(access.TOKEN, "a-secret-token")
    with pytest.raises(ConfigError, match=r"refuses the one here; give .*RAY_AUTH_TOKEN_PATH") as e:
        join_with_token(head("right"))
    assert "a-secret-token" not in str(e.value)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    assert join_with_token("127.0.0.1:1") is Access.OTHER


def test_a_token_is_made_once_for_its_owner_only(home):
    assert token_source() is None
    access.require_token()
    path = home / ".ray" / "auth_token"
    made = path.read_text()
    assert token_source() == str(path)
    assert len(made) == 64
    assert is_private(str(path))
    access.require_token()
    assert path.read_text() == made
    path.chmod(0o644)
    assert not is_private(str(path))


def test_without_a_home_the_token_stays_in_the_process(home, monkeypatch):
    (home / ".ray").write_text("a file where the folder would be")
    access.require_token()
    assert token_source() == access.TOKEN


def test_turning_authentication_off_is_respected(home, monkeypatch):
    monkeypatch.setenv(access.MODE, "disabled")
    access.require_token()
    assert token_source() is None
