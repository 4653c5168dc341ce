"""`EngineClient`: plays HAProxy to an agent over a real socket."""

import socket
import struct
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self, TypeAlias

from spoakit.exceptions import AgentDisconnected, FrameTooBigError, SpoakitError
from spoakit.spop import (
    Acknowledged,
    AgentHello,
    Disconnect,
    Disconnected,
    EngineConnection,
    EngineHello,
    Event,
    Failed,
    Frame,
    FrameFlag,
    FrameType,
    Message,
    Opened,
    decode_frame,
    encode_frame,
    encode_ids,
    encode_messages,
)
from spoakit.testing.calls import Reply, Sendable, make_message
from spoakit.testing.engine import MAX_FRAME_SIZE

Ids: TypeAlias = tuple[int, int]
"""The stream id and the frame id of a NOTIFY, which its ACK repeats."""

CAPABILITIES: Final = frozenset({"fragmentation", "pipelining"})

_FRAME_SIZE_CAP: Final = 1 << 20
_LENGTH_SIZE: Final = 4
_READ_SIZE: Final = 1 << 16


class EngineClient:
    """Client that plays HAProxy to an agent; a context manager, connected when created.

    ::

        with EngineClient(port=12345) as engine:
            engine.hello()
            assert engine.call("check-client-ip", IPv4Address("192.0.2.1")) == {...}

    Methods block. There is no thread, so frames of the agent are read only while a method waits for
    one. Stream ids are 1, 3, 5 and so on, frame ids are 1, as in HAProxy from 3.1.

    Args:
        address: the agent's IPv4 or IPv6 address or host name.
        port: its port.
        unix: path of its Unix socket, in place of address and port.
        timeout: seconds to wait for each read or write.

    Raises:
        OSError: connecting failed, or (by all methods) the connection broke.
        TimeoutError: (by all methods) the agent sent or read nothing for `timeout` seconds.
        ConnectionAbortedError: (by methods that wait) the agent closed without a DISCONNECT.
        AgentDisconnected: (by methods that wait) the agent sent a DISCONNECT.
        ProtocolError: (by methods that wait) the agent violated the protocol.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int = 12345,
        *,
        unix: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._timeout = timeout
        self._socket = _connect(address, port, unix, timeout)
        self._received = bytearray()
        self._connection = EngineConnection(EngineHello(MAX_FRAME_SIZE), _FRAME_SIZE_CAP)
        self._events: deque[Event] = deque()
        self._acks: dict[Ids, Reply] = {}
        self._next_stream_id = 1

    @property
    def agent(self) -> AgentHello | None:
        """The agent's HELLO; None before it has arrived."""
        return self._connection.agent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- handshake ---------------------------------------------------------------------

    def hello(
        self,
        *,
        max_frame_size: int = MAX_FRAME_SIZE,
        capabilities: Iterable[str] = CAPABILITIES,
        versions: tuple[str, ...] = ("2.0",),
        engine_id: str | None = None,
    ) -> AgentHello:
        """Do the handshake, and return the agent's HELLO.

        Args:
            max_frame_size: the max-frame-size to offer, in bytes.
            capabilities: the capabilities to announce.
            versions: the versions to announce.
            engine_id: the engine-id to announce.
        """
        return self._handshake(
            EngineHello(max_frame_size, versions, frozenset(capabilities), False, engine_id)
        )

    def check_health(self) -> AgentHello:
        """Send a health check, as ``option spop-check`` does; the agent then closes."""
        return self._handshake(EngineHello(MAX_FRAME_SIZE, healthcheck=True))

    # --- messages ----------------------------------------------------------------------

    def call(self, message: str, /, *args: Sendable, **kwargs: Sendable) -> Reply:
        """Send one message and wait for its ACK.

        Args:
            message: its name.
            args: arguments without names.
            kwargs: arguments with names; use an `Argument` for a name that is not an identifier.

        Raises:
            TypeError: SPOP has no type for an argument, or it is not of its named type.
            ValueError: an argument is out of the range of its type.
        """
        return self.ack(self.notify(make_message(message, args, kwargs)))

    def notify(self, *messages: Message, fragment_size: int | None = None) -> Ids:
        """Send messages in a frame, without waiting for the ACK.

        Args:
            messages: the messages.
            fragment_size: bytes of each fragment; by default only a payload that exceeds the
                agreed size is fragmented.

        Returns:
            The ids of the frame, for `ack`.

        Raises:
            SpoakitError: `hello` has not been called, or the agent has disconnected.
            FrameTooBigError: the payload exceeds the agreed size, and the agent did not announce
                fragmentation.
        """
        [ids] = self.notify_each([messages], fragment_size=fragment_size)
        return ids

    def notify_each(
        self, frames: Iterable[Iterable[Message]], *, fragment_size: int | None = None
    ) -> list[Ids]:
        """Send several frames in one write, each as `notify` does."""
        self._require_hello()
        sent = []
        for messages in frames:
            ids = self._next_ids()
            self._connection.send_notify(
                messages, stream_id=ids[0], frame_id=ids[1], fragment_size=fragment_size
            )
            sent.append(ids)
        self.send_raw(self._connection.data_to_send())
        return sent

    def abort(self, *messages: Message) -> None:
        """Send the first half of a frame as a fragment, then abort it; there is no ACK."""
        self._require_hello()
        stream_id, frame_id = self._next_ids()
        payload = encode_messages(messages)
        first = encode_frame(
            FrameType.NOTIFY,
            payload[: len(payload) // 2],
            ids=encode_ids(stream_id, frame_id),
            flags=FrameFlag(0),
        )
        self._connection.send_abort(stream_id=stream_id, frame_id=frame_id)
        self.send_raw(first + self._connection.data_to_send())

    def ack(self, ids: Ids) -> Reply:
        """Wait for the ACK of a frame; ACKs of other frames are kept."""
        while ids not in self._acks:
            self._keep_ack(self._next_event())
        return self._acks.pop(ids)

    def next_ack(self) -> tuple[Ids, Reply]:
        """Return the first ACK that was kept, or wait for the next one."""
        while not self._acks:
            self._keep_ack(self._next_event())
        ids = next(iter(self._acks))
        return ids, self._acks.pop(ids)

    # --- the end -----------------------------------------------------------------------

    def disconnect(self, status_code: int = 0, message: str = "") -> Disconnected:
        """Send a DISCONNECT, and return the agent's; ACKs that come before it are kept."""
        # Not sent by the connection, which would ignore ACKs afterwards.
        payload = Disconnect(status_code, message).encode()
        self.send_raw(encode_frame(FrameType.HAPROXY_DISCONNECT, payload))
        return self.wait_for_disconnect()

    def wait_for_disconnect(self) -> Disconnected:
        """Wait for the agent's DISCONNECT; ACKs that come before it are kept."""
        while True:
            try:
                self._keep_ack(self._next_event())
            except AgentDisconnected as error:
                return Disconnected(error.status_code, error.message)

    def wait_for_close(self) -> None:
        """Wait until the agent closes, discard everything it sends, and close."""
        try:
            while self._socket.recv(_READ_SIZE):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            raise TimeoutError(f"the agent did not close within {self._timeout:g} s") from None
        self.close()

    def send_eof(self) -> None:
        """Close the write side, and keep reading."""
        self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a reset (RST), as HAProxy from 3.1 does with idle connections."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self) -> None:
        """Close without a DISCONNECT; does nothing if it is closed."""
        self._socket.close()

    # --- bytes and frames --------------------------------------------------------------

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def read_frame(self) -> Frame:
        """Wait for the agent's next frame of any type."""
        return decode_frame(self._receive_frame()[_LENGTH_SIZE:])

    def _require_hello(self) -> None:
        if self.agent is None:
            raise SpoakitError("the handshake is not done: call hello() before sending frames")

    def _next_ids(self) -> Ids:
        ids = self._next_stream_id, 1
        self._next_stream_id += 2
        return ids

    def _handshake(self, hello: EngineHello) -> AgentHello:
        self._connection = EngineConnection(hello, _FRAME_SIZE_CAP)
        self._connection.send_hello()
        self.send_raw(self._connection.data_to_send())
        opened = self._next_event()
        assert isinstance(opened, Opened)
        return opened.agent

    def _keep_ack(self, event: Event) -> None:
        assert isinstance(event, Acknowledged)
        self._acks[event.stream_id, event.frame_id] = Reply(event.actions)

    def _next_event(self) -> Event:
        while not self._events:
            self._connection.receive_data(self._receive_frame())
            self._events += self._connection.events_received()
        event = self._events.popleft()
        if isinstance(event, Disconnected):
            raise AgentDisconnected(event.status_code, event.message)
        if isinstance(event, Failed):
            raise event.error
        return event

    def _receive_frame(self) -> bytes:
        """Return the next frame with its length."""
        self._fill(_LENGTH_SIZE)
        length = int.from_bytes(self._received[:_LENGTH_SIZE], "big")
        if length > _FRAME_SIZE_CAP:
            raise FrameTooBigError(f"the agent's frame of {length} bytes exceeds {_FRAME_SIZE_CAP}")
        self._fill(_LENGTH_SIZE + length)
        frame = bytes(self._received[: _LENGTH_SIZE + length])
        del self._received[: _LENGTH_SIZE + length]
        return frame

    def _fill(self, size: int) -> None:
        while len(self._received) < size:
            try:
                data = self._socket.recv(_READ_SIZE)
            except TimeoutError:
                raise TimeoutError(f"the agent sent nothing for {self._timeout:g} s") from None
            if not data:
                where = "within a frame" if self._received else "without a DISCONNECT"
                raise ConnectionAbortedError(f"the agent closed the connection {where}")
            self._received += data


def _connect(address: str, port: int, unix: str | None, timeout: float) -> socket.socket:
    if unix is None:
        connected = socket.create_connection((address, port), timeout)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout)
        connected.connect(unix)
    except BaseException:
        connected.close()
        raise
    return connected
