"""A registered handler, and how the arguments of a message become its parameters.

`bind_arguments` answers for one shape on the wire, that is the names and types of a message's
arguments. Its answer is kept for all messages of that shape, so it may take its time.
"""

import inspect
import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Literal, TypeAlias, get_args

from spoakit.agent.parameters import REQUIRED, Parameter, ParameterKind, Role, describe
from spoakit.exceptions import RegistrationError
from spoakit.spop._encode_cy import Action
from spoakit.spop.constants import DataType

Actions: TypeAlias = Action | tuple[Action, ...] | list[Action] | None
"""Type of a handler's result."""

Event: TypeAlias = Literal[
    "on-client-session",
    "on-server-session",
    "on-frontend-tcp-request",
    "on-backend-tcp-request",
    "on-tcp-response",
    "on-frontend-http-request",
    "on-backend-http-request",
    "on-http-response",
]
"""Event on which HAProxy sends a message (SPOE.txt 2.3)."""

Middleware: TypeAlias = Callable[[Callable[..., Any], str], Callable[..., Any]]
"""Takes a handler and its message's name, returns what is called instead of it."""

Shape: TypeAlias = Sequence[tuple[bytes, DataType]]
"""The arguments of a message on the wire: each one's name and type."""

SECTION_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]+")
"""Names that HAProxy accepts for a spoe-agent, a spoe-message, a spoe-group."""

_CONDITION: Final = re.compile(r"(if|unless) \S.*")


def matches(pattern: re.Pattern[str], text: object) -> bool:
    """Return whether the whole of a text matches; what is not a str does not."""
    return isinstance(text, str) and pattern.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Trigger:
    """Trigger of a message: its event or group (SPOE.txt 2.3, 2.4), as far as declared.

    Attributes:
        event: the event.
        condition: ``if`` or ``unless`` and an ACL expression, for the event.
        group: the spoe-group the message belongs to, and then it has no event.

    Raises:
        RegistrationError: HAProxy would not take it.
    """

    event: Event | None = None
    condition: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if self.event is not None and self.event not in get_args(Event):
            raise RegistrationError(f"event {self.event!r} is none of {', '.join(get_args(Event))}")
        if self.group is not None and not matches(SECTION_NAME, self.group):
            raise RegistrationError(
                f"group {self.group!r}: a name has letters, digits and _ . : - only"
            )
        if self.event is not None and self.group is not None:
            raise RegistrationError("a message is sent on an event or with its group, not both")
        if self.condition is not None and self.event is None:
            raise RegistrationError(f"condition {self.condition!r} belongs to an event")
        if self.condition is not None and not matches(_CONDITION, self.condition):
            raise RegistrationError(f"condition {self.condition!r} must start with if or unless")


DEFAULT_TIMEOUT: Final = 1.0
"""Seconds from the reading of a frame to the fallback, for handlers that do not say."""


class HandlerKind(Enum):
    """Way in which a handler runs."""

    INLINE = "inline"  # at once, on the event loop
    ASYNC = "async"  # as a task
    THREADED = "threaded"  # in a pool of threads
    OBSERVER = "observer"  # on the event loop, after the ACKs have been written


@dataclass(frozen=True, slots=True)
class Handler:
    """One handler of a message.

    Attributes:
        agent: the name of its agent.
        message: the name of its message.
        name: its own name, "module.qualified_name", for errors and logs.
        function: what is called: the user's function, at start with middleware around it.
        kind: how it is called.
        parameters: what it is called with, in the order of its signature.
        fallback: what is answered where it cannot be called, fails or is late.
        timeout: seconds from the reading of the frame to the fallback; None for the
            server's default. Inline handlers and observers have none.
        trigger: when HAProxy is to send the message.
        max_delay: seconds that an observer's call may wait for others.
    """

    agent: str
    message: str
    name: str
    function: Callable[..., Any]
    kind: HandlerKind
    parameters: tuple[Parameter, ...]
    fallback: tuple[Action, ...] = ()
    timeout: float | None = None
    trigger: Trigger = Trigger()
    max_delay: float = 0.0

    @property
    def deadline_after(self) -> float | None:
        """Seconds from the reading of the frame to the fallback; None for what runs at once."""
        if self.kind in (HandlerKind.INLINE, HandlerKind.OBSERVER):
            return None
        return DEFAULT_TIMEOUT if self.timeout is None else self.timeout

    @property
    def positional_count(self) -> int:
        """Number of parameters passed by position; the rest go by name."""
        return sum(
            parameter.kind is not ParameterKind.KEYWORD_ONLY for parameter in self.parameters
        )


def handler_kind(message: str, function: Callable[..., Any], threaded: bool) -> HandlerKind:
    """Return how a function is to be run as a handler.

    Raises:
        RegistrationError: it is not a function, yields, or is async and to be threaded.
    """
    # A classmethod or partialmethod object is a routine too, until its class binds it.
    if not (inspect.isroutine(function) and callable(function)):
        raise RegistrationError(
            f"message {message!r}: {function!r} is not a function; write a def or async def that "
            "calls it"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise RegistrationError(f"{describe(function)}: a handler returns actions, it has no yield")
    if not inspect.iscoroutinefunction(function):
        if not threaded and inspect.iscoroutinefunction(inspect.unwrap(function)):
            raise RegistrationError(
                f"{describe(function)}: a def wraps an async def, and nothing would await what it "
                "returns; make the wrapper an async def too"
            )
        return HandlerKind.THREADED if threaded else HandlerKind.INLINE
    if threaded:
        raise RegistrationError(f"{describe(function)}: an async def cannot be threaded")
    return HandlerKind.ASYNC


def with_middleware(handler: Handler, middleware: Sequence[Middleware]) -> Handler:
    """Return a handler with middleware around its function, the first one outermost.

    Raises:
        RegistrationError: what the middleware returned cannot be called as the handler was.
    """
    function = handler.function
    for wrap in reversed(middleware):
        function = wrap(function, handler.message)
        if not callable(function):
            raise RegistrationError(f"{handler.name}: middleware {wrap!r} returned {function!r}")
    if handler.kind is not HandlerKind.ASYNC and inspect.iscoroutinefunction(function):
        raise RegistrationError(f"{handler.name} is a def, and middleware made an async def of it")
    return replace(handler, function=function)


@dataclass(frozen=True, slots=True)
class ParameterSource:
    """Source of one parameter's value in messages of one shape.

    Attributes:
        parameter: the parameter.
        index: the number of its argument on the wire, or None.
        value: where there is no index, the value of an ARGUMENT; other roles get theirs
            from the frame or the resources.
    """

    parameter: Parameter
    index: int | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class Binding:
    """Result of `bind_arguments`.

    Attributes:
        slots: one for each parameter of the handler, in order; empty on a mismatch.
        mismatch: why the handler cannot be called, or None.
        extra: the names of the arguments that no parameter takes.
    """

    slots: tuple[ParameterSource, ...]
    mismatch: str | None
    extra: tuple[bytes, ...]


def bind_arguments(handler: Handler, shape: Shape) -> Binding:
    """Match the arguments of a message with the parameters of its handler.

    Parameters before ``/`` take the first arguments, whatever these are called. The
    others take the first argument of their name; then the first whose name becomes
    theirs by `identifier`, unless they have a ``Fetch(name=)``; then those before ``*``
    take the unnamed arguments that are left, in order.
    """
    wanted = [each for each in handler.parameters if each.role is Role.ARGUMENT]
    positional = [each for each in wanted if each.kind is ParameterKind.POSITIONAL_ONLY]
    by_name = wanted[len(positional) :]
    names = [name.decode("utf-8", "surrogateescape") for name, _ in shape]
    identifiers = [identifier(name) for name in names]
    taken = {each.name: index for each, index in zip(positional, range(len(shape)), strict=False)}
    left = list(range(len(taken), len(shape)))

    def take(parameter: Parameter, known: list[str], name: str) -> None:
        index = next((index for index in left if known[index] == name), None)
        if index is not None and parameter.name not in taken:
            taken[parameter.name] = index
            left.remove(index)

    for each in by_name:
        take(each, names, each.wire_name)
    for each in by_name:
        if each.fetch is None or each.fetch.name is None:
            take(each, identifiers, each.name)
    for each in by_name:
        if each.kind is ParameterKind.ORDINARY:
            take(each, names, "")

    extra = tuple(shape[index][0] for index in left)
    slots = []
    for each in handler.parameters:
        index = taken.get(each.name)
        if each.role is not Role.ARGUMENT:
            slots.append(ParameterSource(each))
        elif index is not None and shape[index][1] in each.accepts:
            slots.append(ParameterSource(each, index))
        elif index is not None and shape[index][1] is not DataType.NULL:
            accepted = " or ".join(kind.name for kind in sorted(each.accepts))
            came = shape[index][1].name
            return Binding((), f"argument {each.wire_name!r} is {came}, not {accepted}", extra)
        elif each.when_absent is REQUIRED:
            state = "missing" if index is None else "NULL"
            return Binding((), f"argument {each.wire_name!r} is {state}", extra)
        else:
            slots.append(ParameterSource(each, None, each.when_absent))
    return Binding(tuple(slots), None, extra)


def identifier(name: str) -> str:
    """Return the Python name for an argument's: "x-id" is x_id, "class" is class_."""
    made = "".join(character if f"_{character}".isidentifier() else "_" for character in name)
    return f"{made}_" if keyword.iskeyword(made) else made
