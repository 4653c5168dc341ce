"""`Agent`: declarations of variables, handlers and resources."""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from ipaddress import IPv4Address, IPv6Address
from types import UnionType
from typing import Any, Final, Literal, TypeVar, overload

from spoakit.agent.handlers import (
    SECTION_NAME,
    Actions,
    Event,
    Handler,
    HandlerKind,
    Middleware,
    Trigger,
    handler_kind,
    matches,
    with_middleware,
)
from spoakit.agent.parameters import ALLOWED, IPAddress, Role, describe, parse_parameters
from spoakit.agent.resources import Resource, parse_resource
from spoakit.agent.variables import NAME, Variable
from spoakit.exceptions import RegistrationError
from spoakit.spop._encode_cy import Action
from spoakit.spop.constants import DataType, Scope

ScalarT = TypeVar("ScalarT", bool, int, str, bytes, IPv4Address, IPv6Address)
InlineT = TypeVar("InlineT", bound=Callable[..., Actions])
AsyncT = TypeVar("AsyncT", bound=Callable[..., Coroutine[Any, Any, Actions]])
HandlerT = TypeVar("HandlerT", bound=Callable[..., Actions | Coroutine[Any, Any, Actions]])
ObserverT = TypeVar("ObserverT", bound=Callable[..., None])
ReloadT = TypeVar("ReloadT", bound=Callable[[], None])
ResourceT = TypeVar("ResourceT", bound=Callable[..., AsyncIterator[Any]])


# Default that makes `@agent.resource()` an error with an explanation, in place of a TypeError.
_NO_FUNCTION: Any = None


_DAY: Final = 86400


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Agent:
    """Agent: the variables it sets, the messages it handles, the resources it needs.

    It serves one spoe-agent section of HAProxy. Declarations are made when its module is imported,
    and have no effect until a server or a test runs the agent.

    Args:
        name: the agent's name, also in HAProxy's configuration.
        var_prefix: the prefix that HAProxy adds to the names of its variables; by default the
            name with _ in place of -.
        middleware: functions that wrap each handler, the first one outermost. They are applied
            once in a service, before its workers are forked, and once for each `Engine`. Each is
            called with the handler and the name of its message, and returns the function to call
            with the same arguments: a function for a ``def``, and for an ``async def`` one that
            returns an awaitable.

    Raises:
        RegistrationError: HAProxy would refuse the name or the prefix.
    """

    def __init__(
        self, name: str, *, var_prefix: str | None = None, middleware: Sequence[Middleware] = ()
    ) -> None:
        if not matches(SECTION_NAME, name):
            raise RegistrationError(
                f"agent {name!r}: a name must consist of letters, digits and _ . : -"
            )
        prefix = name.replace("-", "_") if var_prefix is None else var_prefix
        if not matches(NAME, prefix):
            raise RegistrationError(
                f"agent {name!r}: var_prefix must consist of letters, digits, _ and ., "
                f"got {prefix!r}"
            )
        self.name = name
        self.var_prefix = prefix
        self.middleware = tuple(middleware)
        for wrap in self.middleware:
            if not callable(wrap):
                raise RegistrationError(
                    f"agent {name!r}: middleware must be callable, got {wrap!r}"
                )
        self._variables: dict[tuple[Scope, str], Variable[Any]] = {}
        self._handlers: list[Handler] = []
        self._resources: dict[Any, Resource] = {}
        self._reloads: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Agent {self.name}: {', '.join(sorted(self.messages)) or 'no messages'}>"

    @property
    def variables(self) -> tuple[Variable[Any], ...]:
        """The declared variables."""
        return tuple(self._variables.values())

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The registered handlers, observers among them, without middleware."""
        return tuple(self._handlers)

    @property
    def resources(self) -> tuple[Resource, ...]:
        """The registered resources, in the order to start them."""
        return tuple(self._resources.values())

    @property
    def reloads(self) -> tuple[Callable[[], None], ...]:
        """The functions that `on_reload` registered."""
        return tuple(self._reloads)

    @property
    def messages(self) -> frozenset[str]:
        """The names of the messages that have a handler or an observer."""
        return frozenset(handler.message for handler in self._handlers)

    # --- variables ---------------------------------------------------------------------

    @overload
    def variable(self, name: str, data_type: type[ScalarT]) -> Variable[ScalarT]: ...
    @overload
    def variable(self, name: str, data_type: UnionType) -> Variable[IPAddress]: ...
    @overload
    def variable(self, name: str, data_type: Literal[DataType.BOOL]) -> Variable[bool]: ...
    @overload
    def variable(
        self,
        name: str,
        data_type: Literal[DataType.INT32, DataType.UINT32, DataType.INT64, DataType.UINT64],
    ) -> Variable[int]: ...
    @overload
    def variable(self, name: str, data_type: Literal[DataType.IPV4]) -> Variable[IPv4Address]: ...
    @overload
    def variable(self, name: str, data_type: Literal[DataType.IPV6]) -> Variable[IPv6Address]: ...
    @overload
    def variable(self, name: str, data_type: Literal[DataType.STRING]) -> Variable[str]: ...
    @overload
    def variable(self, name: str, data_type: Literal[DataType.BINARY]) -> Variable[bytes]: ...
    def variable(self, name: str, data_type: object) -> Variable[Any]:
        """Declare a variable that this agent sets.

        Args:
            name: its scope (proc, sess, txn, req or res) and its name, "txn.user". In HAProxy it
                is "txn.PREFIX.user", which must have at most 63 bytes.
            data_type: bool, int (sent as INT64), str (STRING), bytes (BINARY), IPv4Address,
                IPv6Address, IPAddress (IPV4 or IPV6 as the value is), or a DataType.

        Raises:
            RegistrationError: HAProxy would not set it, or it is already declared.
        """
        variable: Variable[Any] = Variable(name, data_type, self.var_prefix)
        key = variable.scope, variable.name
        if key in self._variables:
            raise RegistrationError(f"variable {name!r} is already declared")
        self._variables[key] = variable
        return variable

    # --- handlers ----------------------------------------------------------------------

    @overload
    def message(
        self,
        name: str,
        *,
        event: Event | None = None,
        condition: str | None = None,
        group: str | None = None,
        fallback: Actions = None,
        threaded: Literal[False] = False,
        timeout: None = None,
    ) -> Callable[[HandlerT], HandlerT]: ...
    @overload
    def message(
        self,
        name: str,
        *,
        event: Event | None = None,
        condition: str | None = None,
        group: str | None = None,
        fallback: Actions = None,
        threaded: Literal[True],
        timeout: float | None = None,
    ) -> Callable[[InlineT], InlineT]: ...
    @overload
    def message(
        self,
        name: str,
        *,
        event: Event | None = None,
        condition: str | None = None,
        group: str | None = None,
        fallback: Actions = None,
        threaded: Literal[False] = False,
        timeout: float,
    ) -> Callable[[AsyncT], AsyncT]: ...
    def message(
        self,
        name: str,
        *,
        event: Event | None = None,
        condition: str | None = None,
        group: str | None = None,
        fallback: Actions = None,
        threaded: bool = False,
        timeout: float | None = None,
    ) -> Callable[[Any], Any]:
        """Register the decorated function as the handler of a message.

        A ``def`` runs on the event loop and blocks it, so it must not wait for anything. Code that
        awaits is an ``async def``; code that blocks is ``threaded``. The task of an ``async def``
        starts at once; if it never has to wait, it costs little more than a ``def``. The decorator
        returns the function unchanged, so tests can call it.

        Args:
            name: the message's name.
            event: the event on which HAProxy sends it.
            condition: ``if`` or ``unless`` and an ACL expression, for the event.
            group: its spoe-group; a ``send-spoe-group`` rule sends it.
            fallback: the actions to send if an argument does not match, the handler fails or is
                late, or no thread is free; none by default.
            threaded: run a ``def`` in a thread.
            timeout: seconds from reading the frame to the fallback, for ``async def`` and
                threaded handlers; 1 by default.

        Raises:
            RegistrationError: (also by the decorator) an argument or the function's signature
                cannot work, or the message already has a handler.
        """
        trigger = self._trigger(name, event, condition, group)
        answer = self._fallback(name, fallback)
        if timeout is not None and not (_is_number(timeout) and 0 < timeout <= _DAY):
            raise RegistrationError(
                f"message {name!r}: timeout must be greater than 0 and at most {_DAY} seconds, "
                f"got {timeout!r}"
            )

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            kind = handler_kind(name, function, threaded)
            if kind is HandlerKind.INLINE and timeout is not None:
                raise RegistrationError(
                    f"{describe(function)}: a def on the event loop cannot be interrupted, so it "
                    "cannot have a timeout; make it async def or threaded=True"
                )
            self._register(
                Handler(
                    agent=self.name,
                    message=name,
                    name=describe(function),
                    function=function,
                    kind=kind,
                    parameters=parse_parameters(function),
                    fallback=answer,
                    timeout=timeout,
                    trigger=trigger,
                )
            )
            return function

        return register

    def observe(
        self,
        name: str,
        *,
        event: Event | None = None,
        condition: str | None = None,
        group: str | None = None,
        max_delay: float = 0.0,
    ) -> Callable[[ObserverT], ObserverT]:
        """Register the decorated function to be called with a message after its ACK.

        It is a ``def`` that returns nothing. It runs on the event loop, and must not wait. A
        message may have several observers, with or without a handler.

        Args:
            name: the message's name.
            event: the event on which HAProxy sends it.
            condition: ``if`` or ``unless`` and an ACL expression, for the event.
            group: its spoe-group.
            max_delay: seconds that a call may wait after the ACK, to be made in a batch, which
                costs less. Calls wait only while messages come in quick succession, and for at
                most the shortest ``max_delay`` of all observers in the process.

        Raises:
            RegistrationError: (also by the decorator) an argument or the function's signature
                cannot work.
        """
        trigger = self._trigger(name, event, condition, group)
        if not (_is_number(max_delay) and 0 <= max_delay <= _DAY):
            raise RegistrationError(
                f"message {name!r}: max_delay must be 0 to {_DAY} seconds, got {max_delay!r}"
            )

        def register(function: ObserverT) -> ObserverT:
            if handler_kind(name, function, False) is HandlerKind.ASYNC:
                raise RegistrationError(
                    f"{describe(function)}: an observer must be a def, because nothing would limit "
                    "the number of running tasks; put work that waits into a resource's queue"
                )
            self._register(
                Handler(
                    agent=self.name,
                    message=name,
                    name=describe(function),
                    function=function,
                    kind=HandlerKind.OBSERVER,
                    parameters=parse_parameters(function),
                    trigger=trigger,
                    max_delay=max_delay,
                )
            )
            return function

        return register

    def resource(self, function: ResourceT = _NO_FUNCTION) -> ResourceT:
        """Register an async generator function that yields an object for handlers to share.

        Handlers get the object by a parameter of its type. The function runs once in each worker:
        up to its yield before the worker serves, and to its end when the worker stops. Health
        checks fail until all resources are up. Resources start in the order of their registration
        and stop in reverse. A resource may have parameters of the types of earlier ones.

        Raises:
            RegistrationError: it is not an async generator function, its return annotation does
                not name the yielded type, or another resource yields the same type.
        """
        if function is _NO_FUNCTION:
            raise RegistrationError("write @agent.resource without parentheses")
        resource = parse_resource(function, self._resources)
        self._resources[resource.type] = resource
        return function

    def on_reload(self, function: ReloadT) -> ReloadT:
        """Register the decorated function to be called in each worker at a reload.

        SIGHUP triggers a reload, and so does a change of the file of ``--watch``. The function is a
        ``def`` without parameters, and runs on the event loop. Its exceptions are logged, and the
        worker keeps serving.

        Raises:
            RegistrationError: it is an ``async def``, or cannot be called without arguments.
        """
        try:
            inspect.signature(function).bind()
        except (TypeError, ValueError) as error:
            raise RegistrationError(f"{describe(function)}: on_reload: {error}") from error
        if inspect.iscoroutinefunction(function):
            raise RegistrationError(
                f"{describe(function)}: on_reload: the function must be a def; work that waits "
                "belongs into a task of a resource"
            )
        self._reloads.append(function)
        return function

    def prepare(self) -> tuple[Handler, ...]:
        """Return the handlers with their middleware, after checking that all resources exist.

        A server calls it before it forks.

        Raises:
            RegistrationError: the type of a parameter is not a resource, or a middleware returned
                something that cannot be called like the handler.
        """
        for handler in self._handlers:
            for parameter in handler.parameters:
                if parameter.role is Role.RESOURCE and parameter.annotation not in self._resources:
                    raise RegistrationError(
                        f"{handler.name}: parameter {parameter.name!r}: agent {self.name!r} has "
                        f"no resource of type {parameter.annotation}; allowed are {ALLOWED}"
                    )
        return tuple(with_middleware(handler, self.middleware) for handler in self._handlers)

    # --- checks ------------------------------------------------------------------------

    def _trigger(
        self, message: str, event: Event | None, condition: str | None, group: str | None
    ) -> Trigger:
        if callable(message):
            raise RegistrationError(
                f"{describe(message)}: give the decorator the message's name: "
                '@agent.message("name")'
            )
        if not matches(SECTION_NAME, message):
            raise RegistrationError(
                f"message {message!r}: a name must consist of letters, digits and _ . : -"
            )
        try:
            return Trigger(event, condition, group)
        except RegistrationError as error:
            raise RegistrationError(f"message {message!r}: {error}") from error

    def _register(self, handler: Handler) -> None:
        for other in self._handlers:
            if other.message != handler.message:
                continue
            if HandlerKind.OBSERVER not in (handler.kind, other.kind):
                raise RegistrationError(
                    f"{handler.name}: message {handler.message!r} already has a handler, "
                    f"{other.name}"
                )
            if Trigger() not in (handler.trigger, other.trigger) and (
                handler.trigger != other.trigger
            ):
                raise RegistrationError(
                    f"{handler.name}: message {handler.message!r} has another event, condition "
                    f"or group in {other.name}"
                )
        self._handlers.append(handler)

    def _fallback(self, message: str, fallback: Actions) -> tuple[Action, ...]:
        if fallback is None:
            return ()
        actions = tuple(fallback) if isinstance(fallback, (tuple, list)) else (fallback,)
        for action in actions:
            if not isinstance(action, Action):
                raise RegistrationError(
                    f"message {message!r}: fallback must consist of actions, got {action!r}"
                )
            if (action.scope, action.name) not in self._variables:
                raise RegistrationError(
                    f"message {message!r}: fallback {action!r}: agent {self.name!r} does not "
                    "declare this variable"
                )
        return actions
