"""The dashboard serves its readers while others hold slow connections or send large requests, before any password."""

import contextlib
import gzip
import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import Any

import pytest

from acuity.study.dashboard import listener, middleware
from acuity.study.dashboard.middleware import compressed, read_again, share_large
from support.dashboards import served
from support.waiting import wait_until


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answers with the number of bytes of the request's body."""
    body = environ["wsgi.input"].read()
    assert len(body) < 2**20
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(len(body)).encode()]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def ask(port: int, request: bytes) -> bytes:
    """The whole answer to a request, until the server closes the connection; nothing where that was by a reset."""
    answer = b""
    with connect(port) as connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(request)
        while part := connection.recv(65536):
            answer += part
    return answer


READ = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_readers_are_served_while_hundreds_of_connections_wait() -> None:
    with served(app) as port, ExitStack() as stack:
        for number in range(400):
            slow = stack.enter_context(connect(port))
            if number % 2:
                slow.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert ask(port, READ).startswith(b"HTTP/1.1 200")


def test_request_that_drips_is_cut_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_REQUEST_S", 0.5)
    with served(app) as port, connect(port) as silent, connect(port) as dripping:
        dripping.sendall(b"GET / HTTP/1.1\r\nX: ")

        def drip() -> bool:
            try:
                dripping.setblocking(True)
                dripping.sendall(b"x")
            except OSError:
                return True
            return is_closed(dripping)

        wait_until(drip)
        wait_until(lambda: is_closed(silent))


def test_connection_is_kept_for_the_next_request_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(app) as port, contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        sockets = []
        for _ in range(3):
            client.request("GET", "/")
            assert client.getresponse().read() == b"0"
            sockets.append(client.sock)
        assert sockets[0] is sockets[2]
        kept = sockets[0]
        monkeypatch.setattr(listener, "_IDLE_S", 0.5)
        wait_until(lambda: is_closed(kept))


def test_client_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise eight of them hold all threads."""
    monkeypatch.setattr(listener, "_RESPONSE_S", 0.5)

    def endless(_: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"x" * 2**20 for _ in range(200))

    def both(environ: dict[str, Any], start_response: Any) -> Any:
        return (endless if environ["PATH_INFO"] == "/endless" else app)(environ, start_response)

    with served(both) as port, ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connect(port)).sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        assert ask(port, READ).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("framing", ["Content-Length: 629145600", "Transfer-Encoding: chunked"])
def test_large_body_is_refused_without_being_kept(framing: str) -> None:
    request = f"POST /api/studies HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{framing}\r\n\r\n".encode()
    chunk = b"%x\r\n" % 2**16 + b"x" * 2**16 + b"\r\n"
    with served(app) as port:
        assert ask(port, request + 200 * chunk)[:12] in (b"HTTP/1.1 413", b"")
        assert ask(port, READ).startswith(b"HTTP/1.1 200")


def test_writable_dashboard_accepts_a_note_and_nothing_larger() -> None:
    def post(size: int) -> bytes:
        head = f"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n".encode()
        return ask(port, head + b"x" * min(size, 300_000))

    with served(app, writable=True) as port:
        assert post(300_000).endswith(b"300000")
        assert post(2**21)[:12] in (b"HTTP/1.1 413", b"")


def test_texts_are_compressed_for_clients_that_accept_it() -> None:
    trials = json.dumps([{"number": number, "value": 0.5} for number in range(10_000)]).encode()

    def large(_: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(trials)))])
        return [trials]

    with served(compressed(large)) as port:
        for accepted, expected in (("gzip, br", True), ("identity", False)):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Accept-Encoding": accepted})
            with urllib.request.urlopen(request) as answer:
                body = answer.read()
                assert (answer.headers["Content-Encoding"] == "gzip") is expected
            assert (gzip.decompress(body) if expected else body) == trials
            assert (len(body) < len(trials) / 10) is expected


def test_large_answer_is_computed_once_for_all_who_ask_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    everyone_has_asked = threading.Event()

    def trials(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        asked.append(environ["QUERY_STRING"])
        everyone_has_asked.wait(timeout=0.5)
        size = 10 if environ["QUERY_STRING"] == "after=9" else 2**20
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(size))])
        return [b"x" * size]

    def read(query: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies/1?{query}") as answer:
            return len(answer.read())

    with served(share_large(trials)) as port, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(read, ["after=0"] * 6)) == [2**20] * 6
        everyone_has_asked.set()
        assert [read("after=9"), read("after=9")] == [10, 10]
        assert asked == ["after=0", "after=9", "after=9"], "small answers are always new"
        monkeypatch.setattr(middleware, "_FRESH_S", 0.0)
        read("after=0")
        assert asked[-1] == "after=0", "an old answer is not sent again"


def test_reading_is_repeated_once_after_an_error_and_a_change_never() -> None:
    """The first request after a restart of Postgres meets a connection that was cut."""
    asked: list[str] = []

    def failing_once(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        method = environ["REQUEST_METHOD"]
        status = "200 OK" if method in asked else "500 Internal Server Error"
        asked.append(method)
        start_response(status, [("Content-Type", "text/plain")])
        return [status.encode()]

    with served(read_again(failing_once)) as port:
        assert ask(port, READ).startswith(b"HTTP/1.1 200")
        assert ask(port, READ.replace(b"GET", b"POST")).startswith(b"HTTP/1.1 500")
    assert asked == ["GET", "GET", "POST"]
