"""AioSelector behaves as the selectors of the standard library do."""

import asyncio
import contextlib
import errno
import os
import platform
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE
from types import FrameType

import pytest

from spoakit.exceptions import ConfigurationError
from spoakit.server import aio_selector
from spoakit.server.aio_selector import AioSelector
from tests.support.ports import free_port

Pair = tuple[socket.socket, socket.socket]


def make_aio() -> selectors.BaseSelector:
    try:
        return AioSelector()
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["linuxaio", "default"])
def selector(request: pytest.FixtureRequest) -> Iterator[selectors.BaseSelector]:
    made = make_aio() if request.param == "linuxaio" else selectors.DefaultSelector()
    with made:
        yield made


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def ready(selector: selectors.BaseSelector, timeout: float | None = 5) -> list[tuple[object, int]]:
    return [(key.fileobj, events) for key, events in selector.select(timeout)]


def test_what_can_be_read_is_reported_until_it_is_read(
    selector: selectors.BaseSelector, pair: Pair
) -> None:
    ours, theirs = pair
    key = selector.register(ours, EVENT_READ, "data")
    assert ready(selector, 0) == []
    theirs.send(b"x")
    for timeout in (None, 5, 0):
        assert selector.select(timeout) == [(key, EVENT_READ)]
    ours.recv(1)
    assert ready(selector, 0) == []


def test_what_can_be_written_is_reported_while_there_is_room(
    selector: selectors.BaseSelector, pair: Pair
) -> None:
    ours, theirs = pair
    selector.register(ours, EVENT_READ | EVENT_WRITE)
    assert ready(selector) == [(ours, EVENT_WRITE)]
    with contextlib.suppress(BlockingIOError):
        while ours.send(bytes(65536)):
            pass
    assert ready(selector, 0) == []
    theirs.send(b"x")
    assert ready(selector) == [(ours, EVENT_READ)]


def test_the_end_of_the_peer_can_be_read(selector: selectors.BaseSelector, pair: Pair) -> None:
    ours, theirs = pair
    selector.register(ours, EVENT_READ)
    theirs.close()
    assert ready(selector) == [(ours, EVENT_READ)]


def test_a_refused_connection_is_reported_to_who_waits_to_write(
    selector: selectors.BaseSelector,
) -> None:
    address = ("127.0.0.1", free_port())
    with socket.socket() as connecting:
        connecting.setblocking(False)
        connecting.connect_ex(address)
        selector.register(connecting, EVENT_WRITE)
        assert ready(selector) == [(connecting, EVENT_WRITE)]
        assert connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def test_events_can_be_changed_while_they_are_waited_for(
    selector: selectors.BaseSelector, pair: Pair
) -> None:
    ours, theirs = pair
    selector.register(ours, EVENT_READ)
    assert ready(selector, 0) == []
    selector.modify(ours, EVENT_WRITE, "new")
    assert ready(selector) == [(ours, EVENT_WRITE)]
    assert selector.get_key(ours).data == "new"
    selector.modify(ours, EVENT_READ)
    assert ready(selector, 0) == []
    theirs.send(b"x")
    assert ready(selector) == [(ours, EVENT_READ)]


def test_what_is_unregistered_is_not_reported(selector: selectors.BaseSelector, pair: Pair) -> None:
    ours, theirs = pair
    selector.register(ours, EVENT_READ)
    assert ready(selector, 0) == []
    theirs.send(b"x")
    assert selector.unregister(ours).fileobj is ours
    assert ready(selector, 0.05) == []
    with pytest.raises(KeyError):
        selector.unregister(ours)
    with pytest.raises(KeyError):
        selector.get_key(ours)
    selector.register(ours, EVENT_READ)
    assert ready(selector) == [(ours, EVENT_READ)]


def test_a_close_reaches_the_peer_though_the_descriptor_was_waited_for(
    selector: selectors.BaseSelector,
) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        selector.register(ours, EVENT_READ)
        assert ready(selector, 0) == []
        selector.unregister(ours)
        ours.close()
        theirs.settimeout(5)
        assert theirs.recv(1) == b""


def test_a_descriptor_closed_in_spite_of_being_registered_harms_no_other(
    selector: selectors.BaseSelector, pair: Pair
) -> None:
    ours, theirs = pair
    reader, writer = os.pipe()
    selector.register(reader, EVENT_READ)
    selector.register(ours, EVENT_READ)
    os.close(reader)
    os.close(writer)
    theirs.send(b"x")
    assert ready(selector) == [(ours, EVENT_READ)]
    selector.unregister(reader)


def test_a_closed_object_can_be_unregistered(selector: selectors.BaseSelector) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        selector.register(ours, EVENT_READ)
        ours.close()
        assert selector.unregister(ours).fileobj is ours
    assert len(selector.get_map()) == 0


def test_a_number_that_comes_back_is_not_mistaken_for_its_last_owner(
    selector: selectors.BaseSelector,
) -> None:
    for _ in range(50):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            selector.register(ours, EVENT_READ)
            theirs.send(b"x")
            assert ready(selector) == [(ours, EVENT_READ)]
            ours.recv(1)
            assert ready(selector, 0) == []
            selector.unregister(ours)


def test_a_timeout_is_waited_for(selector: selectors.BaseSelector, pair: Pair) -> None:
    selector.register(pair[0], EVENT_READ)
    for timeout, least in ((0.1, 0.099), (0, 0), (-1, 0)):
        before = time.monotonic()
        assert ready(selector, timeout) == []
        assert least <= time.monotonic() - before < 2
    selector.unregister(pair[0])  # whose cancelled request must not end a wait early
    before = time.monotonic()
    assert ready(selector, 0.1) == []
    assert time.monotonic() - before >= 0.099


def test_a_signal_is_handled_within_a_wait(selector: selectors.BaseSelector, pair: Pair) -> None:
    handled: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        handled.append(signum)
        pair[1].send(b"x")

    selector.register(pair[0], EVENT_READ)
    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        while not ready(selector, None):
            pass
    finally:
        signal.signal(signal.SIGALRM, before)
    assert handled == [signal.SIGALRM]


def test_hundreds_of_descriptors_are_watched(selector: selectors.BaseSelector) -> None:
    pairs = [socket.socketpair() for _ in range(400)]
    try:
        for ours, _ in pairs:
            selector.register(ours, EVENT_READ)
        assert ready(selector, 0) == []
        for _, theirs in pairs:
            theirs.send(b"x")
        seen: set[object] = set()
        while len(seen) < len(pairs):
            for fileobj, _ in ready(selector):
                assert isinstance(fileobj, socket.socket)
                fileobj.recv(1)
                seen.add(fileobj)
        assert ready(selector, 0) == []
    finally:
        for ours, theirs in pairs:
            selector.unregister(ours)
            ours.close()
            theirs.close()


def test_the_queues_grow_with_the_descriptors_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aio_selector, "_FIRST_CAPACITY", 4)
    pairs = [socket.socketpair() for _ in range(50)]
    with make_aio() as selector:
        for ours, theirs in pairs:
            selector.register(ours, EVENT_READ)
            selector.select(0)
            theirs.send(b"x")
        seen: set[object] = set()
        while len(seen) < len(pairs):
            seen.update(fileobj for fileobj, _ in ready(selector))
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


@pytest.mark.parametrize("events", [0, 4, EVENT_READ | 8])
def test_events_that_there_are_not_are_refused(
    selector: selectors.BaseSelector, pair: Pair, events: int
) -> None:
    with pytest.raises(ValueError, match=f"{events}"):
        selector.register(pair[0], events)


def test_a_second_registration_is_refused(selector: selectors.BaseSelector, pair: Pair) -> None:
    selector.register(pair[0], EVENT_READ)
    with pytest.raises(KeyError, match="already registered"):
        selector.register(pair[0].fileno(), EVENT_WRITE)
    assert dict(selector.get_map()) == {pair[0].fileno(): selector.get_key(pair[0])}


def test_streams_run_on_it() -> None:
    async def scenario() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.close()

        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(host, port)
            sent = bytes(range(256)) * 10_000
            writer.write(sent)
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), 10) == sent
            writer.close()
            await writer.wait_closed()

    selector = make_aio()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("refused", [errno.ENOSYS, errno.EPERM, errno.EAGAIN])
def test_a_kernel_that_refuses_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    def refuse(context: object, index: int, *arguments: object) -> int:
        raise OSError(refused, os.strerror(refused))

    monkeypatch.setattr(aio_selector._Context, "_call", refuse)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(ConfigurationError, match=f"linuxaio .*{os.strerror(refused)}"):
        AioSelector()


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("linux", "mips")])
def test_other_systems_are_told_so(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(ConfigurationError, match=f"is for Linux, not {system} {machine}"):
        AioSelector()
