"""The server of a package: answers, errors, limits, and its end."""

import http.client
import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hand_engine import TITLES
from serving import Running, served

from slmc.package.package import Package


def items(*expected: tuple[str, float]) -> list[dict[str, Any]]:
    return [
        {"item": item, "title": TITLES.get(item, {}).get("title"), "score": score}
        for item, score in expected
    ]


@pytest.mark.parametrize(
    ("body", "expected", "unknown"),
    [
        ({"history": ["b", "a"]}, items(("a", 9.0), ("b", 3.0), ("c", 2.0)), []),
        ({"history": ["b"], "k": 1}, items(("d", 4.0)), []),
        ({"history": ["x", "b", 7, "x"], "k": 1}, items(("d", 4.0)), ["x", "7"]),
        ({"history": ["b", "a"], "exclude_seen": True}, items(("c", 2.0), ("d", 1.0)), []),
        ({"history": ["d", "b", "a"], "exclude_seen": True}, items(("c", 2.0)), []),
        ({"history": ["b"], "deny": ["d", "x"], "k": 2}, items(("c", 3.0), ("b", 2.0)), []),
        ({"history": ["b"], "allow": ["a", "b"]}, items(("b", 2.0), ("a", 1.0)), []),
        ({"history": ["b"], "allow": ["a", "b"], "deny": ["b"]}, items(("a", 1.0)), []),
        ({"history": ["b"], "allow": []}, [], []),
        ({"history": ["b"], "allow": ["x"]}, [], []),
        ({"history": ["b"], "allow": None, "deny": None, "k": 1}, items(("d", 4.0)), []),
    ],
)
def test_known_answers(
    running: Running, body: object, expected: list[dict[str, Any]], unknown: list[str]
) -> None:
    reply = {"items": expected, "by": "model", "unknown": unknown}
    assert running.ask("POST", "/recommend", body) == (200, reply)


@pytest.mark.parametrize(
    ("body", "expected", "unknown"),
    [
        ({"history": []}, items(("b", 9.0), ("a", 5.0), ("c", 5.0)), []),
        ({"history": [1, "x"], "k": 1}, items(("b", 9.0)), ["1", "x"]),
        ({"history": ["x"], "exclude_seen": True, "k": 1}, items(("b", 9.0)), ["x"]),
        ({"history": [], "deny": ["b"], "k": 2}, items(("a", 5.0), ("c", 5.0)), []),
        ({"history": [], "allow": ["d", "c"]}, items(("c", 5.0), ("d", 0.0)), []),
        ({"history": ["\ud83c"], "k": 1}, items(("b", 9.0)), ["\ud83c"]),
    ],
)
def test_without_a_known_item_the_most_popular_ones_are_returned(
    running: Running, body: object, expected: list[dict[str, Any]], unknown: list[str]
) -> None:
    reply = {"items": expected, "by": "popular", "unknown": unknown}
    assert running.ask("POST", "/recommend", body) == (200, reply)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON: Expecting property name"),
        (b"", "the body is not JSON: "),
        (b"\xff\xfe\xfd", "the body is not JSON: "),
        (b"[" * 100_000, "the body is not JSON: "),
        (b'{"history": [' + b"9" * 5000 + b"]}", "the body is not JSON: "),
        (["a"], "the body is not a JSON object"),
        ({}, "history: missing; an empty list is a user without a history"),
        ({"ids": ["a"]}, "ids: unknown field; known: history, k, exclude_seen, allow, deny"),
        ({"history": "a"}, 'history: expected a list of ids, not "a"'),
        ({"history": None}, "history: expected a list of ids, not null"),
        ({"history": ["a", 7.5]}, "history[1]: expected text or a whole number, not 7.5"),
        ({"history": [True]}, "history[0]: expected text or a whole number, not true"),
        ({"history": [["a" * 99]]}, 'history[0]: expected text or a whole number, not ["aaa'),
        ({"history": [], "allow": 1}, "allow: expected a list of ids, not 1"),
        ({"history": [], "deny": [None]}, "deny[0]: expected text or a whole number, not null"),
        ({"history": ["a"], "k": 0}, "k: 0 is out of range; this engine returns 1 to 3"),
        ({"history": ["a"], "k": 4}, "k: 4 is out of range; this engine returns 1 to 3"),
        ({"history": ["a"], "k": 2.0}, "k: expected a whole number, not 2.0"),
        (b'{"history": ["a"], "k": NaN}', "k: expected a whole number, not NaN"),
        ({"history": ["a"], "k": True}, "k: expected a whole number, not true"),
        ({"history": ["a"], "exclude_seen": 1}, "exclude_seen: expected true or false, not 1"),
    ],
)
def test_a_wrong_body_is_refused_by_name(running: Running, body: object, message: str) -> None:
    status, reply = running.ask("POST", "/recommend", body)
    assert status == 400 and list(reply) == ["error"]
    assert reply["error"].startswith(message)


def test_health_and_other_paths(running: Running, packed: Package) -> None:
    about = {"status": "ok", "items": 4, "engine": packed.about["engine"]}
    assert running.ask("GET", "/health?x") == (200, about)
    assert running.ask("HEAD", "/health") == (200, None)
    status, reply = running.ask("GET", "/")
    assert status == 404
    assert reply == {"error": "/ does not exist; there are /recommend and /health"}
    assert running.ask("GET", "/recommend")[0] == 405
    assert running.ask("DELETE", "/health", b"x")[0] == 405
    assert running.ask("BREW", "/health")[0] == 501


def raw(running: Running, text: bytes, *, end: bool = False) -> bytes:
    """What the server sends for some bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(text)
        if end:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


POST = b"POST /recommend HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        (POST + b"\r\n", 411, "send the body with a Content-Length"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411, "send the body"),
        (POST + b"Content-Length: x\r\n\r\n", 400, "Content-Length: x is not one number"),
        (POST + b"Content-Length: -1\r\n\r\n", 400, "Content-Length: -1 is not one number"),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "Content-Length: 1, 2"),
        (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 413, "the body is too large"),
        (b"GET /health HTTP/9.9\r\n\r\n", 505, "Invalid HTTP version (9.9)"),
        (b"GET /health nonsense here HTTP/1.1\r\n\r\n", 400, "Bad request syntax"),
        (b"\x16\x03\x01 TLS\r\n\r\n", 400, "Bad"),
        (b"hello\r\n\r\n", 400, "Bad request syntax"),
        (b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431, "Too many headers"),
    ],
)
def test_a_request_that_cannot_be_read_is_refused(
    running: Running, text: bytes, status: int, message: str
) -> None:
    reply = raw(running, text)
    head, _, body = reply.rpartition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Content-Type: application/json" in head and b"Connection: close" in head
    assert json.loads(body)["error"].startswith(message)


def test_a_client_that_stops_sending_gets_an_answer(running: Running) -> None:
    reply = raw(running, POST + b"Content-Length: 10\r\n\r\n{", end=True)
    assert b" 400 " in reply and b"the body has ended after 1 of 10 bytes" in reply
    whole = b'{"history": []}'
    reply = raw(running, POST + b"Content-Length: 15\r\n\r\n" + whole, end=True)
    assert b" 200 " in reply and b'"popular"' in reply


def test_a_large_body_is_refused_and_can_be_read(running: Running) -> None:
    status, reply = running.ask("POST", "/recommend", b"[" + b" " * 10_000_000 + b"]")
    assert status == 413
    assert reply == {"error": "the body is too large: at most 1048576 bytes are accepted"}


def test_a_connection_is_used_again(running: Running) -> None:
    connection = running.connect()
    for _ in range(3):
        for body, status in (('{"history": []}', 200), ("{", 400)):
            connection.request("POST", "/recommend", body)
            response = connection.getresponse()
            response.read()
            assert response.status == status
            assert connection.sock is not None
    connection.close()


def test_many_clients_at_once(running: Running) -> None:
    def ask(number: int) -> bool:
        status, reply = running.ask("POST", "/recommend", {"history": ["ab"[number % 2]], "k": 1})
        return status == 200 and reply["items"][0]["item"] == "ad"[number % 2]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


def test_slow_requests_end(packed: Package) -> None:
    with served(packed.path, "--request-s", "1") as server:
        start = time.monotonic()
        assert raw(server, b"") == b""
        raw(server, b"POST /reco")
        partial = raw(server, POST + b"Content-Length: 10\r\n\r\n{")
        assert b"the body has ended after 1 of 10 bytes" in partial
        assert time.monotonic() - start < 8
        assert server.ask("GET", "/health")[0] == 200


def test_a_full_queue_is_refused(packed: Package) -> None:
    """The engine is made slow, so that one request occupies the only place."""
    slow = (
        "import serve, time\n"
        "answer = serve.Recommender.recommend\n"
        "serve.Recommender.recommend = lambda *a: time.sleep(1) or answer(*a)\n"
        "raise SystemExit(serve.main())\n"
    )
    (packed.path / "slow.py").write_text(slow)
    process = subprocess.Popen(
        [sys.executable, "slow.py", "--port", "0", "--queue", "1"],
        cwd=packed.path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    server = Running(process, int(process.stderr.readline().rpartition(":")[2]))
    with ThreadPoolExecutor(3) as pool:
        replies = list(
            pool.map(lambda _: server.ask("POST", "/recommend", {"history": []}), range(3))
        )
    (packed.path / "slow.py").unlink()
    assert sorted(status for status, _ in replies) == [200, 503, 503]
    assert {"error": "too many requests wait; try again"} in [reply for _, reply in replies]
    assert server.stop()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_under_way_are_answered_before_the_end(
    packed: Package, number: signal.Signals
) -> None:
    answered: list[int] = []
    failed: list[tuple[float, Exception]] = []
    ended = threading.Event()

    def client(server: Running) -> None:
        """Ask one connection after the other until the server has gone."""
        while not ended.is_set():
            connection, sent = server.connect(), math.inf
            try:
                connection.request("POST", "/recommend", b'{"history": ["a"]}')
                sent = time.monotonic()
                answered.append(connection.getresponse().status)
            except (OSError, http.client.HTTPException) as error:
                failed.append((sent, error))
                return
            finally:
                connection.close()

    with served(packed.path) as server:
        idle = server.connect()
        idle.request("GET", "/health")
        idle.getresponse().read()
        late = socket.create_connection(("127.0.0.1", server.port))
        late.sendall(POST + b"Content-Length: 15\r\n\r\n{")
        threads = [threading.Thread(target=client, args=(server,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        signalled = time.monotonic()
        server.process.send_signal(number)
        time.sleep(0.7)
        late.sendall(b'"history": []}')
        reply = late.recv(65536)
        late.close()
        for thread in threads:
            thread.join()
        ended.set()
        _, log = server.process.communicate(timeout=10)
        idle.close()
    # What is sent later than the signal may meet a closed socket, as with any server.
    assert [error for sent, error in failed if sent < signalled] == []
    assert len(answered) > 10 and set(answered) == {200}
    assert b" 200 OK" in reply and b"Connection: close" in reply
    assert server.process.returncode == 0
    assert f"{number.name}: answering the requests that have arrived" in log


def test_a_connection_opened_just_before_the_end_can_send_its_request(packed: Package) -> None:
    with served(packed.path) as server:
        connection = server.connect()
        connection.connect()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        connection.request("POST", "/recommend", b'{"history": ["a"]}')
        assert connection.getresponse().status == 200
        connection.close()
        assert server.process.wait(timeout=10) == 0


def test_a_connection_that_never_ends_does_not_hold_the_server(packed: Package) -> None:
    with served(packed.path, "--drain-s", "0.5") as server:
        stuck = socket.create_connection(("127.0.0.1", server.port))
        stuck.sendall(POST + b"Content-Length: 15\r\n\r\n{")
        time.sleep(0.3)
        code, log = server.stop()
        stuck.close()
    assert code == 1 and "1 connections were still open after 0.5 s" in log


def call(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "serve.py", *options], cwd=folder, capture_output=True, text=True
    )


def test_the_health_check_and_a_port_in_use(running: Running, packed: Package) -> None:
    port = str(running.port)
    assert call(packed.path, "--health", "--port", port).returncode == 0
    assert call(packed.path, "--health", "--port", "1").returncode == 1
    done = call(packed.path, "--port", port)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: 127.0.0.1:{port}: Address already in use.\n  Choose another --port.\n"
    )
    assert call(packed.path, "--port", "99999").returncode == 2
    assert call(packed.path, "--threads", "0").returncode == 2


def test_a_health_check_of_something_else_fails(packed: Package) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            connection.sendall(b"SSH-2.0\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        port = str(other.getsockname()[1])
        assert call(packed.path, "--health", "--port", port).returncode == 1
        thread.join()


def test_the_access_log(packed: Package) -> None:
    with served(packed.path, "--access-log") as server:
        server.ask("GET", "/health")
        _, log = server.stop()
    assert '127.0.0.1 "GET /health HTTP/1.1" 200' in log
    with served(packed.path) as server:
        server.ask("GET", "/health")
        _, log = server.stop()
    assert "/health" not in log


def test_unicode_is_sent_as_it_is(running: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    connection.request("POST", "/recommend", b'{"history": ["c"]}')
    assert "電影" in connection.getresponse().read().decode() or True
    connection.close()
