"""Mistakes in agents, each on its own line; `mypy --strict` finds these and no others."""

from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address
from typing import Any

from spoakit import Action, Actions, Agent, Context, DataType, Headers, IPAddress, PerFrame, run

agent = Agent("planted")
score = agent.variable("sess.score", DataType.UINT32)
name = agent.variable("txn.name", str)
ok = agent.variable("txn.ok", bool)
client = agent.variable("txn.client", IPAddress)

agent.variable("txn.ratio", float)  # error: type-var
agent.variable("txn.nothing", DataType.NULL)  # error: call-overload
score.set("42")  # error: arg-type
name.set(42)  # error: arg-type
ok.set(1)  # error: arg-type
client.set("192.0.2.1")  # error: arg-type
ok.unset()  # error: attr-defined


@agent.message("dict")  # error: type-var
def returns_a_dict(src: IPAddress) -> dict[str, int]:
    return {"sess.score": 42}


@agent.message("value")  # error: type-var
def returns_a_value(src: IPAddress) -> int:
    return 42


@agent.message("late", timeout=0.1)  # error: type-var
def inline_with_timeout(src: IPAddress) -> Action:
    return score.set(42)


@agent.message("thread", threaded=True)  # error: type-var
async def threaded_and_async(src: IPAddress) -> Action:
    return score.set(42)


@agent.observe("async")  # error: type-var
async def observes_async(src: IPAddress) -> None: ...


@agent.observe("answers")  # error: type-var
def observes_and_answers(src: IPAddress) -> Action:
    return score.set(42)


@agent.message("event", event="on-http-request")  # error: call-overload, untyped-decorator
def unknown_event(src: IPAddress) -> Action:
    return score.set(42)


@agent.message("fallback", fallback={"sess.score": 42})  # error: call-overload, untyped-decorator
def fallback_of_a_dict(src: IPAddress) -> Action:
    return score.set(42)


@agent.message("time", timeout="100ms")  # error: call-overload, untyped-decorator
async def timeout_of_text(src: IPAddress) -> Action:
    return score.set(42)


@agent.resource  # error: type-var
async def yields_nothing() -> Headers:
    return Headers(b"\0\0")


@agent.resource
async def yields_another_type() -> AsyncIterator[Headers]:
    yield b"\0\0"  # error: misc


@agent.message("optional")
def takes_none_for_text(token: str | None) -> Action:
    return name.set(token.upper())  # error: union-attr


@agent.message("header")
def takes_an_absent_header(headers: Headers) -> Action:
    return name.set(headers.get("host").lower())  # error: union-attr


@agent.message("context")
def sets_through_the_context(context: Context) -> None:
    context.message = "other"  # error: misc


@agent.message("state")
def mistypes_the_state(state: PerFrame[dict[str, int]]) -> None:
    state["seen"] = "yes"  # error: assignment


@agent.message("branch")
def forgets_to_set(src: IPAddress) -> Actions:
    return score, name  # error: return-value


def no_middleware(handler: Callable[..., Any]) -> Callable[..., Any]:
    return handler


Agent("other", middleware=[no_middleware])  # error: list-item
forgets_to_set("192.0.2.1")  # error: arg-type
takes_none_for_text(IPv4Address("192.0.2.1"))  # error: arg-type
run(agent, port="12345")  # error: arg-type
