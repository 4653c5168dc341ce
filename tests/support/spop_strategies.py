"""What may stand in SPOP's frames, for property tests."""

from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import strategies as st

from spoakit.spop import (
    Action,
    AgentHello,
    Argument,
    DataType,
    EngineHello,
    FrameFlag,
    FrameType,
    Message,
    Scope,
    VariableEncoder,
    encode_frame,
    encode_ids,
    encode_messages,
)

NUMBERS = st.one_of(
    st.integers(0, 300), st.sampled_from((2287, 2288, 2**32, 2**63)), st.integers(0, 2**64 - 1)
)
# Every string of bytes, as Python keeps it.
TEXTS = st.binary(max_size=300).map(lambda raw: raw.decode("utf-8", "surrogateescape"))

BY_TYPE: dict[DataType, st.SearchStrategy[Any]] = {
    DataType.NULL: st.none(),
    DataType.BOOL: st.booleans(),
    DataType.INT32: st.integers(-(2**31), 2**31 - 1),
    DataType.UINT32: st.integers(0, 2**32 - 1),
    DataType.INT64: st.integers(-(2**63), 2**63 - 1),
    DataType.UINT64: NUMBERS,
    DataType.IPV4: st.integers(0, 2**32 - 1).map(IPv4Address),
    DataType.IPV6: st.integers(0, 2**128 - 1).map(IPv6Address),
    DataType.STRING: TEXTS,
    DataType.BINARY: st.binary(max_size=300),
}

# A type and a value of it.
VALUES: st.SearchStrategy[tuple[DataType, Any]] = st.sampled_from(DataType).flatmap(
    lambda kind: st.tuples(st.just(kind), BY_TYPE[kind])
)
ARGUMENTS = st.builds(lambda name, typed: Argument(name, *typed), TEXTS, VALUES)
MESSAGES = st.builds(Message, TEXTS, st.lists(ARGUMENTS, max_size=5).map(tuple))

VARIABLE_NAMES = st.binary(min_size=1, max_size=63).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)


def _action(scope: Scope, name: str, typed: tuple[DataType, Any]) -> Action:
    return VariableEncoder(scope, name, typed[0]).set(typed[1])


ACTIONS = st.builds(_action, st.sampled_from(Scope), VARIABLE_NAMES, VALUES)

_WORDS = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20)
ENGINE_HELLOS = st.builds(
    EngineHello,
    max_frame_size=st.integers(256, 2**32 - 1),
    versions=st.lists(st.sampled_from(("1.0", "2.1", "3.0")), max_size=2).map(
        lambda others: ("2.0", *others)
    ),
    capabilities=st.frozensets(_WORDS, max_size=5),
    healthcheck=st.booleans(),
    engine_id=st.none() | TEXTS,
)
AGENT_HELLOS = st.builds(AgentHello, st.integers(256, 16380), st.frozensets(_WORDS, max_size=5))


def _notify(messages: list[Message], stream_id: int, fragments: int) -> bytes:
    payload = encode_messages(messages)
    ids = encode_ids(stream_id, 1)
    size = len(payload) // fragments + 1
    parts = [payload[start : start + size] for start in range(0, max(1, len(payload)), size)]
    return b"".join(
        encode_frame(
            FrameType.UNSET if index else FrameType.NOTIFY,
            part,
            ids=ids,
            flags=FrameFlag.FIN if index == len(parts) - 1 else FrameFlag(0),
        )
        for index, part in enumerate(parts)
    )


_HELLO = encode_frame(FrameType.HAPROXY_HELLO, EngineHello(16380).encode())
_ANSWER = encode_frame(FrameType.AGENT_HELLO, AgentHello(16380).encode())

# Frames of any type and flags, with ids that often belong together.
FRAMES = st.builds(
    lambda kind, payload, stream_id, flags: encode_frame(
        kind, payload, ids=encode_ids(stream_id, 1), flags=flags
    ),
    st.sampled_from(FrameType),
    st.binary(max_size=40),
    st.integers(0, 2),
    st.sampled_from([FrameFlag(flags) for flags in range(4)]),
)
NOTIFIES = st.builds(
    _notify, st.lists(MESSAGES, max_size=3), st.integers(0, 300), st.integers(1, 4)
)


def _with_mutation(stream: bytes, at: float, byte: int, how: int) -> bytes:
    index = int(at * len(stream))
    if how == 0:
        return stream
    if how == 1:
        return stream[:index] + bytes((byte,)) + stream[index + 1 :]
    if how == 2:
        return stream[:index]
    if how == 3:
        return stream[:index] + stream[index + 1 + byte % 8 :]
    return stream[:index] + bytes((byte,)) * (1 + byte % 8) + stream[index:]


def _streams(hello: bytes, frames: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Return streams that begin well, and may have a flaw anywhere."""
    sound = st.lists(frames, max_size=6).map(lambda parts: hello + b"".join(parts))
    flaws = st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.integers(0, 4)
    return st.builds(_with_mutation, sound, *flaws) | st.binary(max_size=200)


# What an agent may receive, and what an engine may.
TO_AGENT = _streams(_HELLO, NOTIFIES | FRAMES)
TO_ENGINE = _streams(_ANSWER, FRAMES)

# Where a stream is cut into reads.
CUTS = st.lists(st.integers(1, 60), min_size=1, max_size=20)


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """Cut a stream into reads of these sizes, over and over."""
    reads: list[bytes] = []
    position = 0
    while position < len(stream):
        size = sizes[len(reads) % len(sizes)]
        reads.append(stream[position : position + size])
        position += size
    return reads
