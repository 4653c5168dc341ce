from typing import Any

import pytest

from spoakit.exceptions import (
    BadFrameSizeError,
    CapabilitiesNotFoundError,
    InvalidFrameError,
    MaxFrameSizeNotFoundError,
    ProtocolError,
    UnsupportedVersionError,
    VersionNotFoundError,
)
from spoakit.spop import AgentConnection, decode_frame
from spoakit.spop.constants import DataType
from spoakit.spop.handshake import AgentHello, Disconnect, EngineHello
from spoakit.spop.messages import Argument, Message, encode_messages


def items(**values: Any) -> bytes:
    """Encode a KV-LIST, which looks like a message's arguments."""
    arguments = tuple(
        each if isinstance(each, Argument) else Argument.of(name.replace("_", "-"), each)
        for name, each in values.items()
    )
    return encode_messages([Message("", arguments)])[2:]


ENGINE = {"supported_versions": "2.0", "max_frame_size": 16380, "capabilities": "pipelining"}
AGENT = {"version": "2.0", "max_frame_size": 16380, "capabilities": ""}
OFFERED = EngineHello(16380)


def without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


# --- HAPROXY-HELLO ---------------------------------------------------------------------


def test_an_engines_hello_is_read_as_it_was_written() -> None:
    for hello in (
        EngineHello(256),
        EngineHello(
            max_frame_size=2**32 - 1,
            versions=("1.0", "2.0"),
            capabilities=frozenset(("pipelining", "async")),
            healthcheck=True,
            engine_id="d9d7f4e2-9c63-48f4",
        ),
    ):
        assert EngineHello.decode(hello.encode()) == hello


def test_healthcheck_and_engine_id_are_optional() -> None:
    hello = EngineHello.decode(items(**ENGINE))
    assert hello == EngineHello(16380, ("2.0",), frozenset(("pipelining",)), False, None)


def test_capabilities_may_be_empty_and_have_spaces() -> None:
    assert EngineHello.decode(items(**ENGINE | {"capabilities": ""})).capabilities == frozenset()
    hello = EngineHello.decode(items(**ENGINE | {"capabilities": " async , pipelining,"}))
    assert hello.capabilities == {"async", "pipelining"}


def test_items_that_are_not_known_are_ignored() -> None:
    assert EngineHello.decode(items(**ENGINE, future="x", more=b"\xff")).max_frame_size == 16380


def test_of_two_items_with_one_name_the_later_counts() -> None:
    payload = items(**ENGINE) + items(max_frame_size=300)
    assert EngineHello.decode(payload).max_frame_size == 300


@pytest.mark.parametrize("kind", [DataType.INT32, DataType.UINT32, DataType.INT64, DataType.UINT64])
def test_a_size_may_be_any_type_of_integer(kind: DataType) -> None:
    size = Argument("max-frame-size", kind, 4096)
    assert EngineHello.decode(items(**ENGINE | {"max_frame_size": size})).max_frame_size == 4096


@pytest.mark.parametrize("versions", ["2.0", "1.0, 2.0", "2.0,3.0", " 2.1 ", "2"])
def test_an_engine_that_knows_version_2_is_welcome(versions: str) -> None:
    assert EngineHello.decode(items(**ENGINE | {"supported_versions": versions}))


@pytest.mark.parametrize("versions", ["1.0", "1.0,1.1", "3.0", "", "20", "x"])
def test_an_engine_that_knows_no_version_2_is_told_so(versions: str) -> None:
    with pytest.raises(UnsupportedVersionError, match=r"not 2\.0"):
        EngineHello.decode(items(**ENGINE | {"supported_versions": versions}))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("supported_versions", VersionNotFoundError),
        ("max_frame_size", MaxFrameSizeNotFoundError),
        ("capabilities", CapabilitiesNotFoundError),
    ],
)
@pytest.mark.parametrize("value", ["missing", None, True, b"bytes"])
def test_a_missing_or_wrong_item_of_the_engines_has_its_own_error(
    name: str, error: type[ProtocolError], value: Any
) -> None:
    values = without(ENGINE, name) if value == "missing" else ENGINE | {name: value}
    with pytest.raises(error):
        EngineHello.decode(items(**values))


@pytest.mark.parametrize("size", [255, 0, -1, -(2**63)])
def test_an_engine_must_offer_256_bytes(size: int) -> None:
    with pytest.raises(BadFrameSizeError, match="at least 256"):
        EngineHello.decode(items(**ENGINE | {"max_frame_size": size}))


@pytest.mark.parametrize("value", [False, None, 1, "true"])
def test_only_a_true_bool_makes_a_health_check(value: Any) -> None:
    assert not EngineHello.decode(items(**ENGINE, healthcheck=value)).healthcheck


# --- AGENT-HELLO -----------------------------------------------------------------------


def test_an_agents_hello_is_read_as_it_was_written_with_all_three_items() -> None:
    hello = AgentHello(300, frozenset(("fragmentation", "pipelining")))
    assert AgentHello.decode(hello.encode(), OFFERED) == hello
    for name in (b"version", b"max-frame-size", b"capabilities"):
        assert name in AgentHello(256).encode()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("version", VersionNotFoundError),
        ("max_frame_size", MaxFrameSizeNotFoundError),
        ("capabilities", CapabilitiesNotFoundError),
    ],
)
@pytest.mark.parametrize("value", ["missing", None, False, b"bytes"])
def test_a_missing_or_wrong_item_of_the_agents_has_its_own_error(
    name: str, error: type[ProtocolError], value: Any
) -> None:
    values = without(AGENT, name) if value == "missing" else AGENT | {name: value}
    with pytest.raises(error):
        AgentHello.decode(items(**values), OFFERED)


@pytest.mark.parametrize("version", ["1.0", "3.0", "2.1", ""])
def test_an_agent_must_answer_a_version_that_was_offered(version: str) -> None:
    with pytest.raises(UnsupportedVersionError, match="did not offer"):
        AgentHello.decode(items(**AGENT | {"version": version}), OFFERED)


@pytest.mark.parametrize("size", [255, 16381, -1])
def test_an_agent_must_answer_a_size_between_256_and_the_offer(size: int) -> None:
    with pytest.raises(BadFrameSizeError):
        AgentHello.decode(items(**AGENT | {"max_frame_size": size}), OFFERED)
    for good in (256, 16380):
        payload = items(**AGENT | {"max_frame_size": good})
        assert AgentHello.decode(payload, OFFERED).max_frame_size == good


# --- DISCONNECT ------------------------------------------------------------------------


def test_a_disconnect_is_read_as_it_was_written() -> None:
    for reason in (Disconnect(0, ""), Disconnect(98, "x"), Disconnect(99, "caf\udce9")):
        assert Disconnect.decode(reason.encode()).status_code == reason.status_code
    assert Disconnect.decode(Disconnect(4, "é").encode()).message == "é"


@pytest.mark.parametrize("code", [100, 255, 256, 2**31, 2**32 - 1])
def test_a_status_above_99_is_written_as_99(code: int) -> None:
    assert Disconnect.decode(Disconnect(code, "why").encode()) == Disconnect(99, "why")
    agent = AgentConnection()
    agent.send_disconnect(code, "why")
    frame = decode_frame(agent.data_to_send()[4:])
    assert Disconnect.decode(frame.payload).status_code == 99


@pytest.mark.parametrize("message", ["x" * 256, "é" * 128, "x" * 254 + "é"])
def test_a_message_is_cut_to_255_bytes_of_utf8(message: str) -> None:
    cut = Disconnect.decode(Disconnect(0, message).encode()).message
    assert message.startswith(cut)
    assert len(cut.encode()) <= 255
    assert cut == "" or len(cut.encode()) >= 254


def test_a_message_may_be_any_text() -> None:
    assert Disconnect.decode(Disconnect(0, "a\ud800b\udcff").encode()).message == "a?b?"


def test_a_message_that_is_too_long_is_cut_when_it_is_read() -> None:
    assert Disconnect.decode(items(status_code=3, message="x" * 100_000)).message == "x" * 255


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, Disconnect(99, "")),
        ({"status_code": 3}, Disconnect(3, "")),
        ({"message": "bye"}, Disconnect(99, "bye")),
        ({"status_code": "3", "message": 3}, Disconnect(99, "")),
        ({"status_code": True}, Disconnect(99, "")),
        ({"status_code": -1}, Disconnect(99, "")),
        ({"status_code": 2**32}, Disconnect(99, "")),
    ],
)
def test_a_disconnect_with_less_than_it_should_have_is_unknown(
    values: dict[str, Any], reason: Disconnect
) -> None:
    assert Disconnect.decode(items(**values)) == reason


# --- KV-LISTs --------------------------------------------------------------------------


@pytest.mark.parametrize("decode", [EngineHello.decode, Disconnect.decode])
def test_a_list_cut_short_is_invalid(decode: Any) -> None:
    payload = items(status_code=300, max_frame_size=300)
    for size in range(1, len(payload)):
        if size != len(items(status_code=300)):
            with pytest.raises(InvalidFrameError):
                decode(payload[:size])


def test_a_list_has_64_items_at_most() -> None:
    assert Disconnect.decode(items(**{f"x{n}": n for n in range(64)}))
    with pytest.raises(InvalidFrameError, match="the limit of 64 items"):
        Disconnect.decode(items(**{f"x{n}": n for n in range(65)}))
