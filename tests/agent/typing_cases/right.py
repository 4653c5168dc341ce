"""Agents as users write them; `mypy --strict` has nothing to say about them."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any

from spoakit import (
    Action,
    Actions,
    Agent,
    Context,
    DataType,
    Fetch,
    Headers,
    IPAddress,
    MaxFrameSize,
    Message,
    PerFrame,
    run,
    serve,
)

# --- reputation: by position, one action ---

iprep = Agent("iprep")
ip_score = iprep.variable("sess.ip_score", DataType.UINT32)


@iprep.message("check-client-ip", event="on-client-session")
def check(src: IPAddress, /) -> Action:
    return ip_score.set(int(src) % 100)


called_like_a_function: Action = check(IPv4Address("192.0.2.1"))


# --- authentication: several actions, an optional argument, a fallback ---

auth = Agent("jwt-auth", var_prefix="auth")
auth_ok = auth.variable("txn.ok", bool)
user = auth.variable("txn.user", str)
DENY = (auth_ok.set(False), user.set(None))


@auth.message("jwt", event="on-frontend-http-request", fallback=DENY)
def jwt_auth(token: Annotated[str | None, Fetch("req.hdr(authorization)")]) -> Actions:
    if token is None or not token.startswith("Bearer "):
        return DENY
    return auth_ok.set(True), user.set(token.removeprefix("Bearer "))


# --- rate limits: async, a deadline, a resource ---

rate = Agent("rate")
allowed = rate.variable("txn.allowed", bool)


class Redis:
    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    async def incr(self, key: str) -> int:
        await asyncio.sleep(0)
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.counts[key]


@rate.resource
async def redis() -> AsyncIterator[Redis]:
    yield Redis()


@rate.message("rate", event="on-frontend-http-request", timeout=0.010, fallback=allowed.set(True))
async def limit(src: IPAddress, redis: Redis) -> Action:
    return allowed.set(await redis.incr(f"rl:{src}") <= 100)


# --- a mirror: an observer with defaults and a queue ---

mirror = Agent("mirror")


class Queue(asyncio.Queue[tuple[bytes, bytes, bytes]]):
    pass


@mirror.resource
async def queue() -> AsyncIterator[Queue]:
    yield Queue(1024)


@mirror.observe("mirror")
def copy(
    arg_method: bytes,
    arg_path: bytes,
    arg_ver: bytes,
    arg_hdrs: Headers,
    queue: Queue,
    arg_body: bytes = b"",
) -> None:
    queue.put_nowait((arg_method, arg_path, arg_hdrs.raw + arg_body))


# --- bots: headers looked into ---

bots = Agent("bots")
is_bot = bots.variable("req.bot", DataType.BOOL)


@bots.message("headers", event="on-frontend-http-request", condition="unless { path /health }")
def inspect(headers: Annotated[Headers, Fetch("req.hdrs_bin")]) -> Action | None:
    agent = headers.get("user-agent")
    if agent is None or "accept" not in headers:
        return is_bot.set(True)
    languages = [
        each.strip() for value in headers.getall("accept-language") for each in value.split(",")
    ]
    kept = {name.lower(): value for name, value in headers if len(value) < 100}
    return is_bot.set("bot" in agent.lower()) if languages and kept else None


# --- a firewall: threads, an address out, a list of actions ---

firewall = Agent("firewall")
verdict = firewall.variable("txn.verdict", str)
client = firewall.variable("txn.client", IPAddress)
exit_node = firewall.variable("txn.exit", IPv4Address)
digest = firewall.variable("txn.digest", bytes)
offset = firewall.variable("txn.offset", int)


@firewall.message("scan", group="scans", threaded=True, timeout=0.2, fallback=[verdict.set("pass")])
def scan(src: IPAddress, body: bytes = b"", *, port: int) -> list[Action]:
    actions = [verdict.set("deny" if b"<script" in body else "pass"), client.set(src)]
    if isinstance(src, IPv4Address):
        actions.append(exit_node.set(src))
    actions += [digest.set(body[:8]), offset.set(-port)]
    return actions


# --- two messages of one frame ---

pipeline = Agent("pipeline")
country = pipeline.variable("txn.country", DataType.STRING)
risk = pipeline.variable("txn.risk", DataType.INT32)


@dataclass
class State:
    country: str = ""
    reasons: list[str] = field(default_factory=list)


@pipeline.message("geo", event="on-backend-http-request")
def geo(src: IPAddress, state: PerFrame[State]) -> Action:
    state.country = "XX" if src in IPv4Network("192.0.2.0/24") else "YY"
    return country.set(state.country)


@pipeline.message("risk", event="on-backend-http-request")
async def assess(state: PerFrame[State], seen: PerFrame[dict[str, int]]) -> Action:
    state.reasons.append(state.country)
    return risk.set(len(state.reasons) + seen.setdefault("x", 0))


by_hand: Action = geo(IPv4Address("192.0.2.1"), State())


# --- an audit log: everything there is to know ---

audit = Agent("audit")


@audit.message("audit", event="on-http-response")
def note(context: Context, message: Message, unique_id: str | None = None) -> None:
    left = 0.0 if context.deadline is None else context.deadline - context.received
    for argument in message.arguments:
        print(context.peer, context.engine_id or "-", argument.name, argument.type.name, left)


@audit.observe("audit")
def note_again(message: Message, agreed: MaxFrameSize) -> None:
    print(message.name, agreed - 1)


# --- middleware and resources that need resources ---


def timed(handler: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(handler)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        logging.getLogger(name).debug("called")
        return handler(*args, **kwargs)

    return wrapper


quota = Agent("quota", middleware=(timed,))
left = quota.variable("proc.left", DataType.UINT64)


class Quotas:
    def __init__(self, redis: Redis) -> None:
        self.redis = redis


quota.resource(redis)


@quota.resource
async def quotas(redis: Redis) -> AsyncIterator[Quotas]:
    yield Quotas(redis)


@quota.message("quota", event="on-tcp-response")
async def quota_left(src: IPv4Address | None, quotas: Quotas, is_ssl: bool = False) -> Actions:
    return None if src is None or is_ssl else left.set(await quotas.redis.incr(str(src)))


async def live() -> None:
    await serve(quota, address="127.0.0.1", unix=None)


def main() -> int:
    return run(iprep, address="::", port=12345, workers=4)
