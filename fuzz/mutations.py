"""Streams to feed: recorded and encoded ones, with flaws where they hurt."""

import json
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from random import Random

from spoakit.spop import (
    Argument,
    DataType,
    Disconnect,
    EngineHello,
    FrameFlag,
    FrameType,
    Message,
    encode_frame,
    encode_ids,
    encode_messages,
)

STREAMS = Path(__file__).parents[1] / "tests" / "data" / "streams"
HELLO = encode_frame(
    FrameType.HAPROXY_HELLO,
    EngineHello(4096, capabilities=frozenset(("pipelining", "async")), engine_id="id").encode(),
)

# Counts, lengths, types, ends of varints: what gets furthest into a decoder.
INTERESTING = bytes((0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 0x0F, 0x10, 0x11, 0x7F, 0x80, 0xEF, 0xF0, 0xFF))
ENDLESS = b"\xff" * 12
LARGEST = bytes.fromhex("fff0fefefefefefefe0e")

ENCODED = [
    Message("check-client-ip", (Argument.of("", IPv4Address("192.0.2.1")),)),
    Message("check-client-ip", (Argument.of("src", IPv6Address("2001:db8::1")),)),
    Message("check-client-ip", (Argument.of("", "no address"),)),
    Message("check-client-ip", (Argument.of("", None),)),
    Message(
        "arguments",
        (
            Argument.of("int", -5),
            Argument("int", DataType.UINT32, 5),
            Argument.of("true", True),
            Argument.of("ipv4", IPv4Address("192.0.2.1")),
            Argument.of("ipv6", IPv6Address("2001:db8::1")),
            Argument.of("str", "caf\udce9"),
            Argument.of("bin", bytes(300)),
            Argument.of("null", None),
        ),
    ),
    Message("first", (Argument.of("path", "/"),)),
    Message("first", (Argument.of("path", 1),)),
    Message("second"),
    Message("large", (Argument.of("body", bytes(2000)), Argument.of("again", bytes(3000)))),
    Message("nobody's", (Argument.of("x", 2**62),)),
    Message(
        "mirror",
        (
            Argument.of("arg_method", "GET"),
            Argument.of("arg_path", "/"),
            Argument.of("arg_ver", "1.1"),
            Argument.of("arg_hdrs", b"\x04host\x01x\x00\x00"),
            Argument.of("arg_body", None),
        ),
    ),
]


def recorded_streams() -> list[list[bytes]]:
    """Return the frames that real HAProxys sent, by connection."""
    return [
        [bytes.fromhex(line.partition(":")[2]) for line in connection if line.startswith("engine:")]
        for path in sorted(STREAMS.glob("*/*.json"))
        for connection in json.loads(path.read_text())["connections"]
    ]


class Mutator:
    """Makes streams; the same ones for the same seed.

    Args:
        seed: of all its randomness.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._recorded = [stream for stream in recorded_streams() if stream]

    def reads(self) -> list[bytes]:
        """Return a stream, cut into reads."""
        stream = b"".join(self._frames())
        if self._random.random() < 0.2:
            stream = self._flaw(stream)
        if self._random.random() < 0.02:
            stream = self._random.randbytes(self._random.randrange(200))
        reads = []
        position = 0
        largest = self._random.choice((1, 7, 100, 5000)) if len(stream) < 2000 else 5000
        while position < len(stream):
            size = self._random.randint(1, largest)
            reads.append(stream[position : position + size])
            position += size
        return reads

    def _frames(self) -> list[bytes]:
        random = self._random
        if self._recorded and random.random() < 0.4:
            frames = list(random.choice(self._recorded))
            if len(frames) > 8:
                frames = frames[:1] + random.sample(frames[1:], 7)
        else:
            frames = [HELLO]
            for _ in range(random.randint(1, 6)):
                frames += self._notify()
        for _ in range(random.choice((0, 1, 1, 2, 4))):
            self._mutate(frames)
        return frames

    def _notify(self) -> list[bytes]:
        """Return a NOTIFY, mostly whole."""
        random = self._random
        payload = encode_messages(random.choices(ENCODED, k=random.choice((0, 1, 1, 1, 2, 3))))
        ids = encode_ids(random.choice((0, 1, 239, 240, 2**64 - 1)), random.randint(0, 2))
        if random.random() < 0.8:
            return [encode_frame(FrameType.NOTIFY, payload, ids=ids)]
        at = random.randint(0, len(payload))
        last = FrameFlag.FIN | (FrameFlag.ABORT if random.random() < 0.2 else FrameFlag(0))
        return [
            encode_frame(FrameType.NOTIFY, payload[:at], ids=ids, flags=FrameFlag(0)),
            encode_frame(FrameType.UNSET, payload[at:], ids=ids, flags=last),
        ]

    def _mutate(self, frames: list[bytes]) -> None:
        """Change one frame, or the frames' order."""
        random = self._random
        index = random.randrange(len(frames))
        how = random.randrange(8)
        if how == 0:
            del frames[index]
            if not frames:
                frames.append(HELLO)
        elif how == 1:
            frames.insert(index, random.choice(frames))
        elif how == 2:
            kind = random.choice((FrameType.HAPROXY_DISCONNECT, FrameType.UNSET, FrameType.ACK))
            frames.insert(index, encode_frame(kind, Disconnect(0, "bye").encode()))
        elif how == 3:
            # Within the type, the flags or the ids.
            at = random.randrange(4, 12)
            frame = frames[index]
            frames[index] = frame[:at] + random.choice(INTERESTING).to_bytes() + frame[at + 1 :]
        else:
            # The length is put right, so that the flaw is found behind it.
            body = self._flaw(frames[index][4:])
            frames[index] = len(body).to_bytes(4, "big") + body

    def _flaw(self, data: bytes) -> bytes:
        """Change, drop, double or add some bytes."""
        random = self._random
        at = random.randrange(len(data) + 1)
        # Names and counts stand near the start more often than values do.
        if random.random() < 0.5:
            at = min(at, random.randrange(64))
        size = random.choice((1, 1, 1, 2, 4, 8, 16))
        how = random.randrange(7)
        if how == 0:
            return data[:at] + random.randbytes(size) + data[at + size :]
        if how in (1, 2):
            return data[:at] + bytes((random.choice(INTERESTING),)) + data[at + 1 :]
        if how == 3:
            return data[:at] + data[at + size :]
        if how == 4:
            return data[:at] + data[at : at + size] * 2 + data[at + size :]
        if how == 5:
            return data[:at]
        return data[:at] + random.choice((ENDLESS, LARGEST)) + data[at + 1 :]
