from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from spoakit.exceptions import InvalidFrameError
from spoakit.spop import Notify
from spoakit.spop.constants import DataType
from spoakit.spop.messages import Argument, Message, decode_messages, encode_messages


def decode(payload: bytes) -> list[Message]:
    return decode_messages(Notify(b"\x01\x01", b"?" + payload + b"?", 1, 1 + len(payload)))


def test_a_message_is_its_name_their_number_and_its_arguments() -> None:
    arguments = (Argument.of("src", IPv4Address("192.0.2.1")), Argument.of("", None))
    payload = b"\x05check\x02" + b"\x03src\x06\xc0\0\x02\x01" + b"\x00\x00"
    assert encode_messages([Message("check", arguments)]) == payload
    assert decode(payload) == [Message("check", arguments)]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, DataType.NULL),
        (True, DataType.BOOL),
        (1, DataType.INT64),
        ("text", DataType.STRING),
        (b"bytes", DataType.BINARY),
        (IPv4Address("192.0.2.1"), DataType.IPV4),
        (IPv6Address("2001:db8::1"), DataType.IPV6),
    ],
)
def test_an_argument_has_the_type_haproxy_sends_its_value_in(value: Any, kind: DataType) -> None:
    assert Argument.of("name", value) == Argument("name", kind, value)


def test_messages_keep_their_order_and_may_repeat() -> None:
    messages = [
        Message("one", (Argument.of("a", 1), Argument.of("a", 2))),
        Message("two"),
        Message("one"),
    ]
    assert decode(encode_messages(messages)) == messages


def test_a_notify_may_have_no_message() -> None:
    assert encode_messages([]) == b""
    assert decode(b"") == []


def test_names_that_are_not_utf8_survive() -> None:
    messages = [Message("caf\udce9", (Argument("\udcff", DataType.STRING, "\udc80"),))]
    payload = b"\x04caf\xe9\x01\x01\xff\x08\x01\x80"
    assert encode_messages(messages) == payload
    assert decode(payload) == messages


def test_a_message_has_at_most_255_arguments() -> None:
    argument = Argument.of("", None)
    assert len(decode(encode_messages([Message("m", (argument,) * 255)]))[0].arguments) == 255
    with pytest.raises(InvalidFrameError, match="message 'm' has more than 255 arguments"):
        encode_messages([Message("m", (argument,) * 256)])


def test_a_value_that_does_not_fit_its_type_is_refused() -> None:
    with pytest.raises(TypeError, match="BOOL"):
        encode_messages([Message("m", (Argument("n", DataType.BOOL, 1),))])
    with pytest.raises(ValueError, match="UINT32"):
        encode_messages([Message("m", (Argument("n", DataType.UINT32, -1),))])


def test_a_payload_cut_short_is_invalid() -> None:
    payload = encode_messages([Message("check", (Argument.of("src", "x"), Argument.of("n", 240)))])
    for size in range(1, len(payload)):
        with pytest.raises(InvalidFrameError):
            decode(payload[:size])


def test_more_arguments_announced_than_there_are_is_invalid() -> None:
    with pytest.raises(InvalidFrameError):
        decode(b"\x01m\xff\x01a\x00")


def test_fewer_arguments_announced_than_there_are_make_no_message_of_the_rest() -> None:
    with pytest.raises(InvalidFrameError):
        decode(b"\x01m\x00\x01a\x11")
