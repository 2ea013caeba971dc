"""A server process under load: full queue, slow clients, reload and its end lose no request."""

import http.client
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hand_engine import by_hand
from served_engine import ANSWER_S, ask, server


@contextmanager
def load(port: int, clients: int = 8) -> Iterator[list[int]]:
    """Clients that ask until the block ends; yields the statuses, -1 for a request that was lost.

    A refused connection is no loss: the server has not accepted it.
    """
    statuses: list[int] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            try:
                statuses.append(ask(port)[0])
            except ConnectionRefusedError:
                time.sleep(0.01)
            except (OSError, http.client.HTTPException):
                statuses.append(-1)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + ANSWER_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_hand(tmp_path_factory.mktemp("place"), top_k=3).path


def test_sigterm_under_load_loses_no_request(engine: Path) -> None:
    with server(engine) as (process, port), load(port) as statuses:
        wait_for(lambda: len(statuses) > 50)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=ANSWER_S)
    assert set(statuses) <= {200, 503} and statuses.count(200) > 50


def test_a_full_queue_answers_429(engine: Path) -> None:
    with server(engine, "--queue", "1", "--threads", "1") as (_, port), load(port, 16) as statuses:
        wait_for(lambda: 429 in statuses and statuses.count(200) > 20)
    assert set(statuses) == {200, 429}


def test_clients_that_send_half_a_request_do_not_hold_others(engine: Path) -> None:
    head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n{"
    with server(engine, "--request-s", "1") as (_, port):
        slow = [socket.create_connection(("127.0.0.1", port), ANSWER_S) for _ in range(20)]
        for number, one in enumerate(slow):
            one.sendall(head)
            if number % 2:
                one.shutdown(socket.SHUT_WR)
        assert ask(port)[0] == 200
        for one in slow:
            with closing(one):
                while one.recv(4096):  # the server ends the connection
                    pass


def test_a_reload_under_load_loses_no_request(tmp_path: Path, engine: Path) -> None:
    first, link = by_hand(tmp_path / "first", top_k=2).path, tmp_path / "current"
    link.symlink_to(first)

    def top_k(port: int) -> int:
        return int(json.loads(ask(port, "/engines", None)[1])["engines"][0]["top_k"])

    with server(link, "--watch") as (process, port), load(port) as statuses:
        wait_for(lambda: len(statuses) > 20)
        assert top_k(port) == 2
        new = tmp_path / "new"
        new.symlink_to(engine)
        new.replace(link)
        wait_for(lambda: top_k(port) == 3)
        new.symlink_to(tmp_path / "missing")
        new.replace(link)
        process.send_signal(signal.SIGHUP)
        broken = 'slmc_reloads_total{engine="hand",result="failed"}'
        wait_for(lambda: broken in ask(port, "/metrics", None)[1].decode())
        assert top_k(port) == 3
        count = len(statuses)
        wait_for(lambda: len(statuses) > count + 20)
    assert set(statuses) == {200}
    shutil.rmtree(first)
