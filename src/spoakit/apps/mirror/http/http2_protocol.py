"""h2's connection as the mirror needs it: without what costs time, and with an orderly end."""

from collections.abc import Iterable
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, ConnectionInputs, H2Connection, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream
from hpack import Decoder, HeaderTuple
from hpack.struct import Header

from spoakit.apps.mirror.http.http2_head import PlainEncoder

# What may come in before it is acknowledged, which is at once: enough for a long way.
_WINDOW: Final = 1024 * 1024
# By how much the connection's window is larger than the 64 KiB it begins with.
CONNECTION_WINDOW: Final = 4 * _WINDOW
_MAX_HEAD_SIZE: Final = 64 * 1024
# Streams that are over and that h2 still holds.
_MAX_LEFTOVERS: Final = 64
_BODILESS: Final = (b"204", b"304")
# Blocks of fields that are known by heart, and how long one may be.
_MAX_KNOWN: Final = 64
_MAX_KNOWN_SIZE: Final = 512


class MalformedResponse(StreamReset):
    """Malformed response, whose stream has been reset (RFC 9113, 8.1.1).

    Attributes:
        text: what is wrong with it.
    """

    text: str = ""


class _Stream(H2Stream):
    """h2's, for which a malformed response ends its stream and no other (RFC 9113, 8.1.1)."""

    def receive_headers(self, *arguments: Any) -> tuple[list[Any], list[Event]]:
        try:
            return super().receive_headers(*arguments)
        except ProtocolError as error:
            return self._reset_malformed(error)

    def receive_data(self, *arguments: Any) -> tuple[list[Any], list[Event]]:
        try:
            return super().receive_data(*arguments)
        except ProtocolError as error:
            return self._reset_malformed(error)

    def _initialize_content_length(self, headers: Iterable[Header]) -> None:
        # RFC 9110, 8.6: in a 304 it is the length that a 200 would have had.
        if not any(name == b":status" and value in _BODILESS for name, value in headers):
            super()._initialize_content_length(headers)

    def _reset_malformed(self, error: ProtocolError) -> tuple[list[Any], list[Event]]:
        if isinstance(error, StreamClosedError):
            raise error
        event = MalformedResponse(stream_id=self.stream_id, remote_reset=False)
        event.error_code = ErrorCodes.PROTOCOL_ERROR
        event.text = str(error)
        return self.reset_stream(ErrorCodes.PROTOCOL_ERROR), [event]


class _StateMachine(H2ConnectionStateMachine):
    """h2's, for which a GOAWAY is the end: after it, streams up to its last one go on (6.8)."""

    def process_input(self, input_: ConnectionInputs) -> list[Event]:
        if input_ is ConnectionInputs.RECV_GOAWAY:
            return []
        return super().process_input(input_)


class ClientProtocol(H2Connection):
    """h2's connection, in the role of a client that trusts itself and is in a hurry.

    Attributes:
        in_flight: the number of open streams.
    """

    def __init__(self) -> None:
        super().__init__(
            H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        self.in_flight = 0
        self.state_machine = _StateMachine()
        self.encoder = PlainEncoder()
        self.decoder = RepeatingDecoder(_MAX_HEAD_SIZE)
        self.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEAD_SIZE,
            },
        )

    @property
    def open_outbound_streams(self) -> int:
        """How many streams are open; h2 asks before each new one, and would count them."""
        if len(self.streams) > self.in_flight + _MAX_LEFTOVERS:
            return super().open_outbound_streams  # which also clears away those that are over
        return self.in_flight

    def _begin_new_stream(self, stream_id: int, allowed_ids: AllowedStreamIDs) -> H2Stream:
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        stream.__class__ = _Stream  # h2 makes them itself
        return stream

    def clear_outbound_data_buffer(self) -> None:
        """Keep what is not written yet: h2 would throw it away when a GOAWAY comes."""


class RepeatingDecoder(Decoder):
    """Decode blocks of fields, those that come again only once.

    What a block means depends on the table of recent fields, so what is known ends when that
    changes. Servers response with equal blocks for as long as their Date stays the same.
    """

    def __init__(self, max_header_list_size: int) -> None:
        super().__init__(max_header_list_size)
        self._known: dict[bytes, Iterable[HeaderTuple]] = {}

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """Return the fields of a block."""
        known = self._known.get(data)
        if known is not None:
            return known
        before = self._table()
        fields = super().decode(data, raw)
        after = self._table()
        if after != before or after[1] is not before[1] or len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        elif len(data) <= _MAX_KNOWN_SIZE:
            self._known[data] = fields
        return fields

    def _table(self) -> tuple[int, object, int]:
        """Return what differs when the table has changed: an entry that is new is another object.

        Entries come in at the front and go at the back, to fit the size.
        """
        entries = self.header_table.dynamic_entries
        return len(entries), entries[0] if entries else None, self.header_table_size
