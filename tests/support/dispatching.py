"""A `Runtime` that is given frames without a server."""

import asyncio
from collections.abc import Callable
from typing import Any

from spoakit import Agent, Argument, Message
from spoakit.agent.runtime import Runtime
from spoakit.spop import FrameType, decode_actions, decode_frame, encode_frame, encode_messages


def dispatching(agent: Agent, use: Callable[[Runtime], None]) -> None:
    async def live() -> None:
        runtime = Runtime([agent])
        await runtime.start()
        use(runtime)
        await runtime.aclose()

    asyncio.run(live())


def echo(n: int) -> Message:
    return Message("echo", (Argument.of("n", n),))


def frame(*messages: Message) -> bytes:
    return encode_frame(FrameType.NOTIFY, encode_messages(messages), ids=b"\x07\x01")


def answered(ack: bytes | None) -> list[Any] | None:
    """Take an ACK apart: its actions' values."""
    if ack is None:
        return None
    assert int.from_bytes(ack[:4], "big") == len(ack) - 4
    return [action.value for action in decode_actions(decode_frame(ack[4:]).payload)]
