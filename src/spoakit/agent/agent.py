"""`Agent`: what users declare their variables, handlers and resources on."""

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
from spoakit.agent.parameters import ALLOWED, IPAddress, Role, describe, read_parameters
from spoakit.agent.resources import Resource, read_resource
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


# What `@agent.resource()` passes on, which type checkers report where it decorates.
_NO_FUNCTION: Any = None


_DAY: Final = 86400


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Agent:
    """One agent: the variables it sets, the messages it answers, the resources it needs.

    It is what one spoe-agent section of HAProxy talks to. Everything is declared when
    its module is imported, and does nothing until a server or a test runs the agent.

    Args:
        name: the agent's name, in HAProxy's configuration too.
        var_prefix: what HAProxy puts before the names of its variables, the name with _
            for - by default.
        middleware: what to put around each handler when the agent starts, the first one
            outermost: once in a service, before its workers are forked, and once for each
            `Engine`. Each is called with the handler and the name of its message and
            returns what is called instead, with the same arguments: for ``def`` handlers
            a function, for ``async def`` ones what returns an awaitable.

    Raises:
        RegistrationError: HAProxy does not take the name or the prefix.
    """

    def __init__(
        self, name: str, *, var_prefix: str | None = None, middleware: Sequence[Middleware] = ()
    ) -> None:
        if not matches(SECTION_NAME, name):
            raise RegistrationError(f"agent {name!r}: a name has letters, digits and _ . : - only")
        prefix = name.replace("-", "_") if var_prefix is None else var_prefix
        if not matches(NAME, prefix):
            raise RegistrationError(
                f"agent {name!r}: the var_prefix {prefix!r} has to have letters, digits, _ and . "
                "only"
            )
        self.name = name
        self.var_prefix = prefix
        self.middleware = tuple(middleware)
        for wrap in self.middleware:
            if not callable(wrap):
                raise RegistrationError(f"agent {name!r}: middleware {wrap!r} is not callable")
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
        """The registered resources, in the order they start in."""
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
            name: its scope (proc, sess, txn, req or res) and its name, "txn.user". HAProxy
                knows it as "txn.PREFIX.user", which has at most 63 bytes.
            data_type: bool, int (sent as INT64), str (STRING), bytes (BINARY), IPv4Address,
                IPv6Address, IPAddress (IPV4 or IPV6 as the value is), or a DataType.

        Raises:
            RegistrationError: HAProxy would not set it, or it is declared already.
        """
        variable: Variable[Any] = Variable(name, data_type, self.var_prefix)
        key = variable.scope, variable.name
        if key in self._variables:
            raise RegistrationError(f"variable {name!r} is declared already")
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

        A ``def`` runs on the event loop, and while it runs nothing else does: it must not
        wait for anything. What waits is an ``async def``, what blocks is ``threaded``. An
        ``async def`` runs at once, as a task of its own, up to what it waits for first; one that
        does not wait costs little more than a ``def``. The decorator returns the function as it
        is, so it can be called by tests.

        Args:
            name: the message's name.
            event: when HAProxy sends it.
            condition: ``if`` or ``unless`` and an ACL expression, for the event.
            group: the spoe-group it belongs to; a ``send-spoe-group`` rule sends it then.
            fallback: what is answered where an argument does not fit, the handler fails
                or is late, or no thread is free. Nothing by default.
            threaded: run a ``def`` in a thread.
            timeout: seconds from the reading of the frame to the fallback, for ``async
                def`` and threaded handlers; the server's default is 1.

        Raises:
            RegistrationError: now or by the decorator: something here or in the function's
                signature cannot work; or the message has a handler already.
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
                    "has no timeout; make it async def or threaded=True"
                )
            self._register(
                Handler(
                    agent=self.name,
                    message=name,
                    name=describe(function),
                    function=function,
                    kind=kind,
                    parameters=read_parameters(function),
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
        """Register the decorated function to see a message after its ACK has been sent.

        It is a ``def`` that returns nothing and must not wait: it runs on the event loop. A
        message may have several observers, beside its handler or without one.

        Args:
            name: the message's name.
            event: when HAProxy sends it.
            condition: ``if`` or ``unless`` and an ACL expression, for the event.
            group: the spoe-group it belongs to.
            max_delay: seconds that a call may wait after the ACK, so that several are made
                together, which costs less each. It waits only while messages come in quick
                succession, for a few others, and for no longer than the shortest ``max_delay`` of
                the observers of all agents that are served together.

        Raises:
            RegistrationError: now or by the decorator: something here or in the function's
                signature cannot work.
        """
        trigger = self._trigger(name, event, condition, group)
        if not (_is_number(max_delay) and 0 <= max_delay <= _DAY):
            raise RegistrationError(
                f"message {name!r}: max_delay must be 0 to {_DAY} seconds, got {max_delay!r}"
            )

        def register(function: ObserverT) -> ObserverT:
            if handler_kind(name, function, False) is HandlerKind.ASYNC:
                raise RegistrationError(
                    f"{describe(function)}: an observer is a def, since nothing would bound how "
                    "many async ones run; hand what waits to a resource with a bounded queue"
                )
            self._register(
                Handler(
                    agent=self.name,
                    message=name,
                    name=describe(function),
                    function=function,
                    kind=HandlerKind.OBSERVER,
                    parameters=read_parameters(function),
                    trigger=trigger,
                    max_delay=max_delay,
                )
            )
            return function

        return register

    def resource(self, function: ResourceT = _NO_FUNCTION) -> ResourceT:
        """Register an async generator function whose object handlers can ask for by type.

        It runs once in each worker, up to its yield before the worker serves, the rest
        when the worker stops. Health checks fail until all resources are up. Resources
        start in the order they are registered in, stop in reverse, and may have
        parameters of the types of earlier ones.

        Raises:
            RegistrationError: it is something else, its return annotation does not say what
                it yields, or another resource yields the same type.
        """
        if function is _NO_FUNCTION:
            raise RegistrationError("write @agent.resource without parentheses")
        resource = read_resource(function, self._resources)
        self._resources[resource.type] = resource
        return function

    def on_reload(self, function: ReloadT) -> ReloadT:
        """Register the decorated function to be called in each worker at a reload.

        A reload is asked for by SIGHUP, or by a change of the file of ``--watch``. The function is
        a ``def`` without parameters, and runs on the event loop between two callbacks. What it
        raises is logged, and the worker goes on.

        Raises:
            RegistrationError: it is an ``async def``, or nothing that can be called without
                arguments.
        """
        try:
            inspect.signature(function).bind()
        except (TypeError, ValueError) as error:
            raise RegistrationError(f"{describe(function)}: on_reload: {error}") from error
        if inspect.iscoroutinefunction(function):
            raise RegistrationError(
                f"{describe(function)}: on_reload: a reload is a def; start what waits from a "
                "resource"
            )
        self._reloads.append(function)
        return function

    def prepare(self) -> tuple[Handler, ...]:
        """Return the handlers as they are called: checked as a whole, middleware applied.

        Raises:
            RegistrationError: a parameter is of a type that is not a resource, or a middleware
                returned what cannot be called as the handler was.
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
                f"{describe(message)}: the decorator takes the message's name: "
                '@agent.message("name")'
            )
        if not matches(SECTION_NAME, message):
            raise RegistrationError(
                f"message {message!r}: a name has letters, digits and _ . : - only"
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
                    f"{handler.name}: message {handler.message!r} has the handler {other.name}"
                )
            if Trigger() not in (handler.trigger, other.trigger) and (
                handler.trigger != other.trigger
            ):
                raise RegistrationError(
                    f"{handler.name}: message {handler.message!r} has another event, condition "
                    f"or group at {other.name}"
                )
        self._handlers.append(handler)

    def _fallback(self, message: str, fallback: Actions) -> tuple[Action, ...]:
        if fallback is None:
            return ()
        actions = tuple(fallback) if isinstance(fallback, (tuple, list)) else (fallback,)
        for action in actions:
            if not isinstance(action, Action):
                raise RegistrationError(
                    f"message {message!r}: fallback: {action!r} is not an action"
                )
            if (action.scope, action.name) not in self._variables:
                raise RegistrationError(
                    f"message {message!r}: fallback: {action!r} is of a variable that agent "
                    f"{self.name!r} does not declare"
                )
        return actions
