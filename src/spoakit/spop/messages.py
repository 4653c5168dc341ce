"""Messages of a NOTIFY (SPOE.txt 3.2: LIST-OF-MESSAGES)."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from spoakit.exceptions import InvalidFrameError
from spoakit.spop._decode_cy import Cursor, Notify, Value
from spoakit.spop._encode_cy import encode_string, encode_value
from spoakit.spop.constants import DataType

MAX_ARGUMENTS = 255
"""Number of arguments that a message has at most: its count is one byte (SPOE.txt 3.2.6)."""

_NATURAL_TYPES: dict[type, DataType] = {
    type(None): DataType.NULL,
    bool: DataType.BOOL,
    int: DataType.INT64,
    str: DataType.STRING,
    bytes: DataType.BINARY,
    IPv4Address: DataType.IPV4,
    IPv6Address: DataType.IPV6,
}


@dataclass(frozen=True, slots=True)
class Argument:
    """Argument of a message: its name (often empty), its wire type, its value."""

    name: str
    type: DataType
    value: Value

    @classmethod
    def of(cls, name: str, value: Value) -> "Argument":
        """Return an argument with the wire type that HAProxy uses for values of this type."""
        return cls(name, _NATURAL_TYPES[type(value)], value)


@dataclass(frozen=True, slots=True)
class Message:
    """Message: its name, and its arguments in their order on the wire."""

    name: str
    arguments: tuple[Argument, ...] = ()


def decode_messages(notify: Notify, max_messages: int = 0) -> list[Message]:
    """Decode all messages of a NOTIFY, with all arguments.

    Args:
        notify: the frame.
        max_messages: the limit on their number; 0 for none.

    Raises:
        TooManyMessagesError: there are more.
        InvalidFrameError: the payload is not a list of messages.
    """
    cursor = notify.cursor(max_messages)
    messages = []
    while not cursor.at_end():
        cursor.message_name()
        messages.append(decode_message(cursor))
    return messages


def decode_message(cursor: Cursor) -> Message:
    """Decode the message at the cursor.

    Raises:
        InvalidFrameError: the message is malformed.
    """
    name = _text(cursor.string())
    arguments = []
    for _ in range(cursor.byte()):
        argument = _text(cursor.string())
        arguments.append(Argument(argument, *cursor.value()))
    return Message(name, tuple(arguments))


def encode_messages(messages: Iterable[Message]) -> bytes:
    """Encode the payload of a NOTIFY.

    Raises:
        InvalidFrameError: a message has more than 255 arguments.
        TypeError: a value is not of its argument's type.
        ValueError: a value is out of its type's range.
    """
    out = bytearray()
    for message in messages:
        if len(message.arguments) > MAX_ARGUMENTS:
            raise InvalidFrameError(
                f"message {message.name!r} has more than {MAX_ARGUMENTS} arguments"
            )
        out += encode_string(_bytes(message.name))
        out.append(len(message.arguments))
        for argument in message.arguments:
            out += encode_string(_bytes(argument.name))
            out += encode_value(argument.type, argument.value)
    return bytes(out)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
