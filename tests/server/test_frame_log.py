"""spoakit.server.frame_log: frames as lines of the debug log."""

import pytest

from spoakit.server.frame_log import describe_notify, describe_outgoing
from spoakit.spop import (
    AgentConnection,
    AgentSettings,
    Argument,
    DataType,
    EngineConnection,
    EngineHello,
    FrameType,
    Message,
    Notify,
    Scope,
    Value,
    VariableEncoder,
    encode_frame,
    encode_ids,
)
from spoakit.spop._encode_cy import append_ack


def notify(*messages: Message) -> Notify:
    """Return a NOTIFY as an agent reads it."""
    engine = EngineConnection(EngineHello(16384))
    agent = AgentConnection(AgentSettings(frame_size_cap=1 << 20))
    engine.send_hello()
    agent.receive_data(engine.data_to_send())
    agent.events_received()
    engine.receive_data(agent.data_to_send())
    engine.events_received()
    engine.send_notify(messages, stream_id=7, frame_id=2)
    agent.receive_data(engine.data_to_send())
    [event] = agent.events_received()
    assert isinstance(event, Notify)
    return event


def shown(name: str, value: Value, kind: DataType | None = None) -> str:
    argument = Argument.of(name, value) if kind is None else Argument(name, kind, value)
    text = describe_notify(notify(Message("m", (argument,))), 10)
    return text.removeprefix("NOTIFY 7/2: m(").removesuffix(")")


def test_a_notify_shows_its_messages_and_arguments() -> None:
    first = Message("one", (Argument.of("", 1), Argument.of("path", "/a"), Argument.of("n", None)))
    text = describe_notify(notify(first, Message("two")), 10)
    assert text == "NOTIFY 7/2: one(1, path='/a', n=None) two()"
    assert describe_notify(notify(), 10) == "NOTIFY 7/2: no message"


def test_long_values_are_cut() -> None:
    assert shown("a", "x" * 1000) == f"a={'x' * 80!r}... (1000 in all)"
    assert shown("a", b"\0\xff" * 500) == f"a={(chr(0) + chr(255)) * 40!r}... (1000 in all)"


@pytest.mark.parametrize(
    "name",
    [
        *("password", "user_passwd", "authorization", "http.authorization", "Cookie", "set-cookie"),
        *("token", "csrf-token", "api_key", "x-api-key", "client_secret", "sid", "session_id"),
    ],
)
def test_a_secrets_name_masks_its_value(name: str) -> None:
    assert shown(name, "hunter2") == f"{name}=***"
    assert shown(name, b"hunter2") == f"{name}=***"


@pytest.mark.parametrize(
    "value",
    [
        *("/a?token=hunter2", "/a?x=1&access_token=hunter2&y=2", "password=hunter2&user=me"),
        *("Bearer hunter2", "basic aHVudGVyMg==hunter2", '{"user": 1, "password": "hunter2"}'),
        *('{"api_key":"hunter2', "a=1; sid=hunter2; b=2", "x\r\nclient_secret: hunter2"),
    ],
)
def test_a_secret_inside_of_a_value_is_masked(value: str) -> None:
    for given in (value, value.encode()):
        text = shown("v", given)
        assert "hunter2" not in text
        assert "***" in text


@pytest.mark.parametrize("value", ["/keyboard?monkey=1", "author=me", "passage=2", "besides=3"])
def test_other_values_are_shown(value: str) -> None:
    assert shown("v", value) == f"v={value!r}"


BINARY = b"\x04host\x01h\x0dauthorization\x12Basic aHVudGVyMg==\x06cookie\x03a=b\0\0"
TEXT = b"host: h\r\nauthorization: Basic aHVudGVyMg==\r\ncookie: a=b\r\n\r\n"


def test_headers_are_shown_field_by_field() -> None:
    expected = "arg_hdrs=[host: 'h', authorization: ***, cookie: ***]"
    assert shown("arg_hdrs", BINARY) == expected
    assert shown("arg_hdrs", TEXT.decode()) == expected
    assert shown("arg_hdrs", b"\xff") == "arg_hdrs=(1 bytes that are not a header block)"
    assert shown("arg_hdrs", None) == "arg_hdrs=None"
    many = b"\x01a\x01b" * 30 + b"\0\0"
    assert shown("arg_hdrs", many).endswith("a: 'b', ... (30 fields in all)]")


def test_acks_and_disconnects_are_shown() -> None:
    outgoing = bytearray()
    score = VariableEncoder(Scope.SESS, "ip_score", DataType.UINT32)
    token = VariableEncoder(Scope.TXN, "token", DataType.STRING)
    actions = [score.set(42), token.set("hunter2"), score.set(None)]
    append_ack(outgoing, encode_ids(1, 2), actions, 16384)
    append_ack(outgoing, encode_ids(3, 1), [], 16384)
    agent = AgentConnection(AgentSettings())
    agent.send_disconnect(3, "too big")
    outgoing += agent.data_to_send()
    outgoing += encode_frame(FrameType.AGENT_HELLO, b"")
    assert list(describe_outgoing(bytes(outgoing))) == [
        "ACK 1/2: sess.ip_score=42 txn.token=*** sess.ip_score=None",
        "ACK 3/1: no action",
        "AGENT-DISCONNECT with status 3: too big",
        "AGENT-HELLO",
    ]
