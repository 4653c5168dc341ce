"""The C tools tell the truth: checked against the sans-I/O agent, and against each other."""

import json
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from benchmarks.measure import running, wait_until
from benchmarks.tools import Sink, Tools, build
from spoakit.spop import (
    AgentConnection,
    DataType,
    Message,
    Notify,
    Scope,
    VariableEncoder,
    decode_messages,
)
from tests.support.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]

IP_SCORE = VariableEncoder(Scope.SESS, "ip_score", DataType.UINT32)


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    return build(tmp_path_factory.mktemp("tools"))


@pytest.fixture
def sink(tools: Tools, tmp_path: Path) -> Iterator[Sink]:
    with tools.sink(tmp_path / "sink.log") as sink:
        yield sink


class Agent:
    """Keeps the messages it gets; `order` gives the order of a read's ACKs."""

    def __init__(self, order: Callable[[list[Notify]], Sequence[Notify]]) -> None:
        self.messages: list[Message] = []
        self.ids: list[int] = []
        self.disconnects = 0
        self._order = order

    def serve(self, connected: socket.socket) -> None:
        connection = AgentConnection()
        while not connection.is_closing and (data := connected.recv(65536)):
            connection.receive_data(data)
            events = connection.events_received()
            for notify in self._order([event for event in events if isinstance(event, Notify)]):
                self.messages += decode_messages(notify)
                self.ids.append(notify.stream_id)
                connection.send_ack(notify, [IP_SCORE.set(1)])
            connected.sendall(connection.data_to_send())
        self.disconnects += connection.is_closing


@contextmanager
def agent(
    order: Callable[[list[Notify]], Sequence[Notify]] = lambda notifies: notifies,
) -> Iterator[tuple[Agent, int]]:
    """Serve on a free port."""
    serving = Agent(order)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            serving.serve(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield serving, server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_load_sends_the_notifies_it_counts_and_says_goodbye(tools: Tools) -> None:
    with agent() as (served, port):
        load = tools.engine_load(port, 2, 8, count=1000, expect="ip_score")
    assert (load.done, load.problems) == (1000, ())
    assert {message.name for message in served.messages} == {"check-client-ip"}
    addresses = {message.arguments[0].value for message in served.messages}
    assert len(served.messages) == len(addresses) == 1000
    assert IPv4Address("10.0.0.0") in addresses
    assert served.disconnects == 2


def test_a_wide_load_asks_for_addresses_of_all_of_ipv4(tools: Tools) -> None:
    with agent() as (served, port):
        tools.engine_load(port, count=512, wide=True)
    addresses = [message.arguments[0].value for message in served.messages]
    assert len(set(addresses)) == 512
    assert len({str(address).partition(".")[0] for address in addresses}) > 200


def test_stream_ids_are_odd_and_counted_on_each_connection(tools: Tools) -> None:
    with agent() as (served, port):
        tools.engine_load(port, 1, 4, count=600)
    assert sorted(served.ids) == list(range(1, 1200, 2))


def test_acks_may_come_in_any_order(tools: Tools) -> None:
    with agent(lambda notifies: notifies[::-1]) as (_, port):
        load = tools.engine_load(port, 2, 16, count=1000)
    assert (load.done, load.problems) == (1000, ())


def test_an_ack_that_comes_twice_is_an_error(tools: Tools) -> None:
    with agent(lambda notifies: [*notifies, *notifies[:1]]) as (_, port):
        load = tools.engine_load(port, count=10)
    assert load.problems == ("10 unexpected",) or load.problems == ("9 unexpected",)


def test_an_ack_without_the_expected_variable_is_an_error(tools: Tools) -> None:
    with agent() as (_, port):
        load = tools.engine_load(port, count=10, expect="other")
    assert load.problems == ("10 missing_actions",)


def test_churn_makes_a_connection_for_each_notify(tools: Tools) -> None:
    with agent() as (served, port):
        load = tools.engine_load(port, 4, count=50, churn=True, expect="ip_score")
    assert (load.done, load.problems) == (50, ())
    assert (len(served.messages), served.disconnects) == (50, 50)


def test_a_pace_is_never_exceeded(tools: Tools) -> None:
    with agent() as (_, port):
        load = tools.engine_load(port, 2, 4, count=200, rate=1000)
    # How far a busy machine falls behind is not the load's to say; unpaced it is ten times this.
    assert load.done == 200
    assert load.per_second < 1100


def test_a_dead_agent_is_an_error(tools: Tools) -> None:
    port = free_port()
    load = tools.engine_load(port, 2, count=10)
    assert (load.done, load.problems) == (0, ("2 connect",))


@pytest.mark.parametrize("body", [0, 4096])
def test_the_bare_sender_sends_the_request_that_the_notify_describes(
    tools: Tools, body: int
) -> None:
    with agent() as (served, port):
        tools.engine_load(port, count=1, message="mirror", body=body)
    [message] = served.messages
    method, path, version, headers, content = (argument.value for argument in message.arguments)
    assert isinstance(headers, bytes)
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [
            str(tools.directory / "bare_sender"),
            f"-p{server.getsockname()[1]}",
            *("-n1", "-c1", f"-b{body}"),
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL):
            connected, _ = server.accept()
            with connected, connected.makefile("rb") as file:
                head = [line.rstrip(b"\r\n") for line in iter(file.readline, b"\r\n")]
                received = file.read(body)
    assert head[0].decode() == " ".join((str(method), str(path), f"HTTP/{version!s}"))
    assert [line.split(b": ", 1) for line in head[1:]] == _pairs(headers)
    assert received == content


def _pairs(headers: bytes) -> list[list[bytes]]:
    """Read req.hdrs_bin; names and values are shorter than 240 bytes."""
    texts = []
    while headers:
        size = headers[0]
        texts.append(headers[1 : 1 + size])
        headers = headers[1 + size :]
    assert texts[-2:] == [b"", b""]
    return [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]


def test_the_sink_counts_every_request(tools: Tools, sink: Sink) -> None:
    for body in (0, 4096, 65536):
        sent = tools.bare_sender(sink.port, 4, count=100, body=body)
        assert sent.problems == ()
    assert sink.count() == 300


def test_the_bare_sender_keeps_a_pace_and_tells_latencies(tools: Tools, tmp_path: Path) -> None:
    with tools.sink(tmp_path / "slow.log", delay=20) as slow:
        sent = tools.bare_sender(slow.port, 50, count=200, rate=1000)
    assert sent.problems == ()
    assert sent.per_second < 1100
    assert 19_680 <= sent.p50 <= sent.p99 <= sent.maximum  # percentiles are right within 1.6 %


def test_the_sink_counts_pipelined_requests_and_answers_head_without_a_body(sink: Sink) -> None:
    with socket.create_connection(("127.0.0.1", sink.port)) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\n\r\nPUT / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi")
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as file:
            answer = file.read()
    assert Counter(answer.splitlines()) == {
        b"HTTP/1.1 200 OK": 2,
        b"Content-Length: 3": 2,
        b"": 2,
        b"ok": 1,
    }
    assert sink.count() == 2


def test_a_silent_sink_counts_and_never_answers(tools: Tools, tmp_path: Path) -> None:
    with tools.sink(tmp_path / "sink.log", never=True) as sink:
        sent = subprocess.run(
            [tools.directory / "bare_sender", f"-p{sink.port}", "-c3", "-n10", "-t0.2"],
            stdout=subprocess.PIPE,
            check=False,
        )
        assert sink.count() == 3
    assert (sent.returncode, json.loads(sent.stdout)["errors"]) == (1, {"lost": 3})


def test_usage_is_that_of_all_processes_of_a_command_and_none_is_left(tmp_path: Path) -> None:
    port = free_port()
    # A shell whose child burns CPU, whose grandchild would stay, and which itself listens.
    script = (
        "python3 -c 'for i in range(3000000): pass'; sleep 600 & echo $!;"
        f" exec python3 -m http.server {port} --bind 127.0.0.1"
    )
    with running(["sh", "-c", script], port=port, log=tmp_path / "log") as process:
        usage = process.usage()
        sleeper = int(process.log_text().split()[0])
        assert _runs(sleeper)
    assert usage.cpu > 0.05
    assert usage.peak_rss > 5
    assert wait_until(lambda: not _runs(sleeper), 5)


def test_memory_is_that_of_children_in_other_sessions_too(tmp_path: Path) -> None:
    port = free_port()
    # The child ends when the pipe to it closes, with its parent.
    child = "import sys; held = bytes([1]) * 2**26; sys.stdin.read()"
    parent = f"""
import subprocess, sys
from http.server import HTTPServer, BaseHTTPRequestHandler
command = [sys.executable, "-c", {child!r}]
subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
HTTPServer(("127.0.0.1", {port}), BaseHTTPRequestHandler).serve_forever()
"""
    with running([sys.executable, "-c", parent], port=port, log=tmp_path / "log") as process:
        assert wait_until(lambda: process.memory() > 64, 10)


def _runs(pid: int) -> bool:
    """Whether there is such a process; one that only waits to be reaped does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
