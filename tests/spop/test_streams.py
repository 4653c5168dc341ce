"""What real HAProxys and an agent said to each other (tests/data/streams) means what it meant.

`scripts/record_streams.py` made the recordings, and tells their format.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeAlias

import pytest

from spoakit.exceptions import FragmentationError
from spoakit.spop import (
    Acknowledged,
    AgentConnection,
    Argument,
    DataType,
    Disconnected,
    EngineConnection,
    EngineHello,
    Event,
    Failed,
    Frame,
    FrameType,
    HealthChecked,
    Message,
    Notify,
    Opened,
    decode_actions,
    decode_frame,
    decode_messages,
)

STREAMS = Path(__file__).parents[1] / "data" / "streams"

Frames: TypeAlias = tuple[tuple[str, bytes], ...]
Split: TypeAlias = Callable[[bytes], Iterable[bytes]]


@dataclass(frozen=True)
class Recording:
    """One scenario, as one version of HAProxy played it."""

    version: str
    scenario: str
    connections: tuple[Frames, ...]

    def __str__(self) -> str:
        return f"{self.version}-{self.scenario}"

    @classmethod
    def read(cls, path: Path) -> "Recording":
        connections = json.loads(path.read_text())["connections"]
        frames = tuple(tuple(map(parse, connection)) for connection in connections)
        return cls(path.parent.name, path.stem, frames)

    def notifies(self) -> list[list[Message]]:
        """Return the messages of each NOTIFY, in an order that does not depend on timing."""
        notifies = [
            decode_messages(event)
            for connection in self.connections
            for event in replay(sent_by("engine", connection))
            if isinstance(event, Notify)
        ]
        return sorted(notifies, key=repr)


def parse(line: str) -> tuple[str, bytes]:
    sender, _, frame = line.partition(":")
    return sender, bytes.fromhex(frame)


RECORDINGS = [Recording.read(path) for path in sorted(STREAMS.glob("*/*.json"))]
every_recording = pytest.mark.parametrize("recording", RECORDINGS, ids=str)


def sent_by(sender: str, connection: Frames) -> bytes:
    return b"".join(frame for who, frame in connection if who == sender)


def replay(data: bytes, split: Split | None = None) -> list[Event]:
    """Return the events of an agent that receives these bytes, in these pieces, and their end."""
    agent = AgentConnection()
    events = []
    for piece in split(data) if split else [data]:
        agent.receive_data(piece)
        events += agent.events_received()
    agent.receive_eof()
    return events + agent.events_received()


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    return (data[index : index + 1] for index in range(len(data)))


def at_random(seed: int, data: bytes) -> Iterator[bytes]:
    sizes = random.Random(seed)
    position = 0
    while position < len(data):
        size = sizes.choice((1, 2, 3, 4, 5, 10, 100, 1000, 10_000))
        yield data[position : position + size]
        position += size


def comparable(events: list[Event]) -> list[object]:
    return [
        (event.ids, decode_messages(event)) if isinstance(event, Notify) else event
        for event in events
    ]


def test_every_scenario_is_there_for_every_version_that_can_play_it() -> None:
    played = {
        version: {each.scenario for each in RECORDINGS if each.version == version}
        for version in ("2.6", "3.0", "3.2")
    }
    assert played["2.6"] == played["3.0"]
    assert played["2.6"] - played["3.2"] == {"fragmented", "idle-disconnect"}
    assert played["2.6"] == SCENARIOS.keys()


@every_recording
def test_no_frame_of_haproxys_breaks_a_rule(recording: Recording) -> None:
    for connection in recording.connections:
        events = replay(sent_by("engine", connection))
        assert events
        assert not [event for event in events if isinstance(event, Failed)]


@pytest.mark.parametrize(
    "split",
    [
        pytest.param(byte_by_byte, id="bytes"),
        *(pytest.param(partial(at_random, seed), id=f"seed{seed}") for seed in range(8)),
    ],
)
@every_recording
def test_how_the_bytes_are_cut_changes_nothing(recording: Recording, split: Split) -> None:
    for connection in recording.connections:
        data = sent_by("engine", connection)
        assert comparable(replay(data, split)) == comparable(replay(data))


@every_recording
def test_the_agent_would_answer_with_the_same_bytes(recording: Recording) -> None:
    for connection in recording.connections:
        agent = AgentConnection()
        pending: dict[bytes, Notify] = {}
        farewell: Disconnected | None = None
        for sender, data in connection:
            if sender == "engine" and data:
                agent.receive_data(data)
                for event in agent.events_received():
                    if isinstance(event, Notify):
                        pending[event.ids] = event
                    if isinstance(event, Disconnected):
                        farewell = event
            elif sender == "agent" and data:
                frame = decode_frame(data[4:])
                if frame.type == FrameType.ACK:
                    assert agent.send_ack(pending.pop(frame.ids), decode_actions(frame.payload))
                elif frame.type == FrameType.AGENT_DISCONNECT:
                    assert farewell is not None
                    agent.send_disconnect(farewell.status_code, farewell.message)
                assert agent.data_to_send() == data
        assert not pending


@every_recording
def test_our_engine_says_what_haproxy_says_and_takes_what_haproxy_takes(
    recording: Recording,
) -> None:
    for connection in recording.connections:
        (_, hello), *rest = connection
        engine = EngineConnection(EngineHello.decode(decode_frame(hello[4:]).payload))
        engine.send_hello()
        # The items of a HELLO have no order, so its bytes are not compared but its meaning.
        assert meaning(engine.data_to_send()) == meaning(hello)
        for sender, data in rest:
            if not data or engine.is_closing:
                break
            frame = decode_frame(data[4:])
            match sender, frame.type:
                case "engine", FrameType.NOTIFY:
                    if not frame.is_final:
                        break  # cut as it likes: the whole is compared above
                    notify = Notify(frame.ids, frame.payload, 0, len(frame.payload))
                    engine.send_notify(
                        decode_messages(notify), stream_id=frame.stream_id, frame_id=frame.frame_id
                    )
                    assert engine.data_to_send() == data
                case "engine", FrameType.HAPROXY_DISCONNECT:
                    break
                case _, FrameType.ACK if not frame.is_final:
                    [event] = received(engine, data)
                    assert isinstance(event, Failed)
                    assert isinstance(event.error, FragmentationError)
                case _, FrameType.ACK:
                    [event] = received(engine, data)
                    actions = tuple(decode_actions(frame.payload))
                    assert event == Acknowledged(frame.stream_id, frame.frame_id, actions)
                case _:
                    [event] = received(engine, data)
                    assert isinstance(event, Opened)


def meaning(hello: bytes) -> EngineHello:
    frame: Frame = decode_frame(hello[4:])
    assert (frame.type, frame.stream_id, frame.frame_id) == (FrameType.HAPROXY_HELLO, 0, 0)
    return EngineHello.decode(frame.payload)


def received(engine: EngineConnection, data: bytes) -> list[Event]:
    engine.receive_data(data)
    return engine.events_received()


def argument(name: str, value: str | bytes | int | bool | IPv4Address | IPv6Address) -> Argument:
    return Argument.of(name, value)


def mirrored(
    headers: Callable[[dict[str, str]], str | bytes],
    method: str,
    path: str,
    fields: dict[str, str],
    body: bytes,
) -> list[Message]:
    return [
        Message(
            "mirror",
            (
                argument("arg_method", method),
                argument("arg_path", path),
                argument("arg_ver", "1.1"),
                argument("arg_hdrs", headers({"host": "www.example.org", **fields})),
                argument("arg_body", body),
            ),
        )
    ]


def binary(fields: dict[str, str]) -> bytes:
    """Encode as req.hdrs_bin, with its empty name and value at the end."""
    items = [part for field in pairs(fields) for part in field]
    return b"".join(bytes((len(item),)) + item.encode() for item in (*items, "", ""))


def text(fields: dict[str, str]) -> str:
    """Encode as req.hdrs."""
    return "".join(f"{name}: {value}\r\n" for name, value in pairs(fields)) + "\r\n"


def pairs(fields: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for name, values in fields.items() for value in values.split("|")]


def mirrored_requests(headers: Callable[[dict[str, str]], str | bytes]) -> list[list[Message]]:
    bodies = b"name=value", bytes(range(256))
    form = {"content-type": "text/plain", "content-length": "10"}
    return [
        mirrored(
            headers, "GET", "/path?query=1&query=2", {"accept": "*/*", "x-twice": "one|two"}, b""
        ),
        mirrored(headers, "POST", "/form", form, bodies[0]),
        mirrored(
            headers,
            "PUT",
            "http://www.example.org/file",
            {"x-empty": "", "content-length": "256"},
            bodies[1],
        ),
        mirrored(headers, "OPTIONS", "*", {}, b""),
    ]


def large(body: bytes) -> list[Message]:
    names = ("body", "again", "and-again")
    return [Message("large", tuple(argument(name, body) for name in names))]


IPV4 = [Message("check-client-ip", (argument("", IPv4Address("127.0.0.1")),))]
SESSION = [Message("session", (argument("", IPv4Address("127.0.0.1")),))]
BY_RULE = [Message("by-rule", (argument("", "GET"),))]
RESPONSE = [Message("response", (argument("status", 204),))]
SCENARIOS: dict[str, list[list[Message]]] = {
    "health-check": [],
    "client-ip-ipv4": [IPV4] * 2,
    "client-ip-ipv6": [[Message("check-client-ip", (argument("", IPv6Address("::1")),))]],
    "mirror-binary-headers": mirrored_requests(binary),
    "mirror-text-headers": mirrored_requests(text),
    "arguments": [
        [
            Message(
                "arguments",
                (
                    argument("true", True),
                    argument("false", False),
                    argument("", 0),
                    argument("int", 42),
                    argument("negative", -42),
                    argument("largest", 2**63 - 1),
                    argument("ipv4", IPv4Address("192.0.2.1")),
                    argument("ipv6", IPv6Address("2001:db8::1")),
                    argument("str", "hello"),
                    argument("empty", ""),
                    argument("bin", b"\x00\xff\x80"),
                    Argument("null", DataType.NULL, None),
                    argument("utf8", "é"),
                    argument("latin1", "\udce9"),
                    argument("method", "GET"),
                    argument("twice", 1),
                    argument("twice", 2),
                ),
            )
        ]
    ],
    "several-messages": [
        *[SESSION, BY_RULE, RESPONSE] * 2,
        [Message("first", (argument("path", "/"),)), Message("second")],
        [Message("first", (argument("path", "/again"),)), Message("second")],
    ],
    "pipelined": [IPV4] * 9,
    "fragmented": [large(b"a" * 1000), large(b"b" * 1500)],
    "idle-disconnect": [IPV4],
    "error-disconnect": [IPV4],
}


@every_recording
def test_the_messages_are_those_of_the_scenario(recording: Recording) -> None:
    assert recording.notifies() == sorted(SCENARIOS[recording.scenario], key=repr)


@pytest.mark.parametrize(
    ("scenario", "last"),
    [
        ("health-check", HealthChecked(refused=False)),
        ("idle-disconnect", Disconnected(2, "a timeout occurred")),
        ("error-disconnect", Disconnected(10, "fragmentation not supported")),
    ],
)
def test_how_a_connection_ended_is_told(scenario: str, last: Event) -> None:
    for recording in RECORDINGS:
        if recording.scenario == scenario:
            [connection] = recording.connections
            assert replay(sent_by("engine", connection))[-1] == last
