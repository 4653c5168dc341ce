"""Handlers, and the rule that binds the arguments of a message to a handler's parameters.

The result of `bind_arguments` is kept for all messages of a shape (the names and wire types of
their arguments), so it is written for clarity, not speed.
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
"""Function that gets a handler and its message's name, and returns the function to call."""

Shape: TypeAlias = Sequence[tuple[bytes, DataType]]
"""Names and wire types of a message's arguments, in order."""

SECTION_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]+")
"""Names that HAProxy accepts for a spoe-agent, a spoe-message, a spoe-group."""

_CONDITION: Final = re.compile(r"(if|unless) \S.*")


def matches(pattern: re.Pattern[str], text: object) -> bool:
    """Return whether a value is a str that matches the pattern as a whole."""
    return isinstance(text, str) and pattern.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Trigger:
    """Trigger of a message, as declared: its event or group (SPOE.txt 2.3, 2.4).

    Attributes:
        event: the event.
        condition: ``if`` or ``unless`` and an ACL expression, for the event.
        group: the spoe-group of the message; a message in a group has no event.

    Raises:
        RegistrationError: HAProxy would refuse it.
    """

    event: Event | None = None
    condition: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if self.event is not None and self.event not in get_args(Event):
            raise RegistrationError(
                f"event must be one of {', '.join(get_args(Event))}, got {self.event!r}"
            )
        if self.group is not None and not matches(SECTION_NAME, self.group):
            raise RegistrationError(
                f"group {self.group!r}: a name has letters, digits and _ . : - only"
            )
        if self.event is not None and self.group is not None:
            raise RegistrationError("a message has an event or a group, not both")
        if self.condition is not None and self.event is None:
            raise RegistrationError(f"condition {self.condition!r} needs an event")
        if self.condition is not None and not matches(_CONDITION, self.condition):
            raise RegistrationError(
                f"condition must start with if or unless, got {self.condition!r}"
            )


DEFAULT_TIMEOUT: Final = 1.0
"""Seconds from reading a frame to the fallback, for handlers without a timeout."""


class HandlerKind(Enum):
    """Way in which a handler runs."""

    INLINE = "inline"  # at once, on the event loop
    ASYNC = "async"  # as a task
    THREADED = "threaded"  # in a pool of threads
    OBSERVER = "observer"  # on the event loop, after the ACKs have been written


@dataclass(frozen=True, slots=True)
class Handler:
    """Handler of a message.

    Attributes:
        agent: the name of its agent.
        message: the name of its message.
        name: "module.qualified_name" of the function, for errors and logs.
        function: the user's function; from `Agent.prepare` on with its middleware.
        kind: the way it runs.
        parameters: its parameters, in the order of its signature.
        fallback: the actions to send if it cannot be called, fails or is late.
        timeout: seconds from reading the frame to the fallback; None for the server's
            default. Inline handlers and observers have no timeout.
        trigger: the event or group with which HAProxy sends the message.
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
        """Seconds from reading the frame to the fallback; None for handlers without a timeout."""
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
    """Return the way to run a function as a handler.

    Raises:
        RegistrationError: it is not a function, it is a generator, or it is async and threaded.
    """
    # An unbound classmethod or partialmethod object is a routine, but not callable.
    if not (inspect.isroutine(function) and callable(function)):
        raise RegistrationError(
            f"message {message!r}: {function!r} is not a function; write a def or async def that "
            "calls it"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise RegistrationError(f"{describe(function)}: a handler must return actions, not yield")
    if not inspect.iscoroutinefunction(function):
        if not threaded and inspect.iscoroutinefunction(inspect.unwrap(function)):
            raise RegistrationError(
                f"{describe(function)}: a def wraps an async def, and nothing would await its "
                "result; make the wrapper an async def too"
            )
        return HandlerKind.THREADED if threaded else HandlerKind.INLINE
    if threaded:
        raise RegistrationError(f"{describe(function)}: an async def cannot be threaded")
    return HandlerKind.ASYNC


def with_middleware(handler: Handler, middleware: Sequence[Middleware]) -> Handler:
    """Return a handler with middleware around its function, the first one outermost.

    Raises:
        RegistrationError: the middleware returned something that cannot be called like the handler.
    """
    function = handler.function
    for wrap in reversed(middleware):
        function = wrap(function, handler.message)
        if not callable(function):
            raise RegistrationError(
                f"{handler.name}: middleware {wrap!r} must return a function, got {function!r}"
            )
    if handler.kind is not HandlerKind.ASYNC and inspect.iscoroutinefunction(function):
        raise RegistrationError(
            f"{handler.name} is a def, but its middleware returned an async def"
        )
    return replace(handler, function=function)


@dataclass(frozen=True, slots=True)
class ParameterSource:
    """Source of one parameter's value in messages of one shape.

    Attributes:
        parameter: the parameter.
        index: the index of its argument on the wire; None without one.
        value: the default of an ARGUMENT without an index. Values of other roles come from the
            frame or the resources.
    """

    parameter: Parameter
    index: int | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class Binding:
    """Result of `bind_arguments`.

    Attributes:
        slots: the source of each parameter, in order; empty on a mismatch.
        mismatch: the reason why the handler cannot be called; None if it can.
        extra: the names of arguments without a parameter.
    """

    slots: tuple[ParameterSource, ...]
    mismatch: str | None
    extra: tuple[bytes, ...]


def bind_arguments(handler: Handler, shape: Shape) -> Binding:
    """Bind the arguments of a message to the parameters of its handler.

    1. Positional-only parameters, before ``/``, get the first arguments, whatever their names.
    2. Other parameters get the first argument of the same name.
    3. Then they get the first argument whose name becomes theirs by `identifier`, unless they
       have a ``Fetch(name=)``.
    4. Parameters before ``*`` get the remaining unnamed arguments, in order.
    """
    wanted = [each for each in handler.parameters if each.role is Role.ARGUMENT]
    positional = [each for each in wanted if each.kind is ParameterKind.POSITIONAL_ONLY]
    by_name = wanted[len(positional) :]
    names = [name.decode("utf-8", "surrogateescape") for name, _ in shape]
    identifiers = [identifier(name) for name in names]
    bound = {each.name: index for each, index in zip(positional, range(len(shape)), strict=False)}
    left = list(range(len(bound), len(shape)))

    def bind(parameter: Parameter, known: list[str], name: str) -> None:
        index = next((index for index in left if known[index] == name), None)
        if index is not None and parameter.name not in bound:
            bound[parameter.name] = index
            left.remove(index)

    for each in by_name:
        bind(each, names, each.wire_name)
    for each in by_name:
        if each.fetch is None or each.fetch.name is None:
            bind(each, identifiers, each.name)
    for each in by_name:
        if each.kind is ParameterKind.ORDINARY:
            bind(each, names, "")

    extra = tuple(shape[index][0] for index in left)
    slots = []
    for each in handler.parameters:
        index = bound.get(each.name)
        if each.role is not Role.ARGUMENT:
            slots.append(ParameterSource(each))
        elif index is not None and shape[index][1] in each.accepts:
            slots.append(ParameterSource(each, index))
        elif index is not None and shape[index][1] is not DataType.NULL:
            accepted = " or ".join(kind.name for kind in sorted(each.accepts))
            came = shape[index][1].name
            return Binding((), f"argument {each.wire_name!r} must be {accepted}, got {came}", extra)
        elif each.when_absent is REQUIRED:
            state = "missing" if index is None else "NULL"
            return Binding((), f"argument {each.wire_name!r} is {state}", extra)
        else:
            slots.append(ParameterSource(each, None, each.when_absent))
    return Binding(tuple(slots), None, extra)


def identifier(name: str) -> str:
    """Return the Python name for an argument's name: x_id for "x-id", class_ for "class"."""
    made = "".join(character if f"_{character}".isidentifier() else "_" for character in name)
    return f"{made}_" if keyword.iskeyword(made) else made
