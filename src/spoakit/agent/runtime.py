"""Runtime of agents in one worker: their resources, and a dispatcher for their handlers."""

from __future__ import annotations

from asyncio import get_running_loop
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from spoakit.agent._calls_cy import Failure, PendingCall
from spoakit.agent._dispatch_cy import BoundHandler, Dispatcher
from spoakit.agent._eager_cy import TaskStarter
from spoakit.agent._suspension_cy import Suspender
from spoakit.agent.agent import Agent
from spoakit.agent.combine import combine
from spoakit.agent.handlers import Handler, HandlerKind
from spoakit.agent.observer_batching import ObserverBatcher
from spoakit.agent.resources import ResourceSet
from spoakit.exceptions import ConfigurationError
from spoakit.metrics.families import histogram
from spoakit.metrics.memory import SharedMetrics, WorkerMetrics
from spoakit.spop.constants import DEFAULT_MAX_MESSAGES

HANDLER_SECONDS = histogram(
    "spoakit_handler_seconds",
    "Time that a call of a handler or observer takes. Calls in a row are timed together, and each "
    "counts with their mean.",
    labels=("message",),
    limit=16,
)
ACK_SECONDS = histogram(
    "spoakit_ack_seconds",
    "Time from the reading of a frame to the ACK of its message, ready to be written.",
    labels=("message",),
    limit=16,
)


class Runtime:
    """Agents of one port in one worker. Start it in the event loop that serves them.

    Args:
        agents: one or more agents with different messages.
        resources: for tests; objects by type, which replace resources.
        on_error: for tests; called with errors of handler calls, see `BoundHandler`, and of
            resources that stop.
        row: the worker's counters, for resources with a parameter for them.
        max_messages: limit on the messages of a frame.
        handlers: the result of `combine`; None calls it, which applies middleware again.

    Raises:
        ConfigurationError: agents share a name or a message, see `combine`; or a replacement has
            a type that is not a resource of any agent.
        RegistrationError: a handler cannot work.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        resources: Mapping[Any, object] = MappingProxyType({}),
        on_error: Callable[[BaseException], object] | None = None,
        row: WorkerMetrics | None = None,
        max_messages: int = DEFAULT_MAX_MESSAGES,
        handlers: Mapping[str, tuple[Handler, ...]] | None = None,
    ) -> None:
        self._handlers = combine(agents) if handlers is None else handlers
        self._on_error = on_error
        self._max_messages = max_messages
        known = set().union(*map(_types, agents))
        for kind in resources:
            if kind not in known:
                raise ConfigurationError(f"no agent has a resource of type {kind}")
        self._metrics = row = row or SharedMetrics(1).worker(0)
        self._resources = {
            agent.name: ResourceSet(
                agent.resources,
                row,
                {kind: each for kind, each in resources.items() if kind in _types(agent)},
                on_error,
            )
            for agent in agents
        }

    async def start(self) -> None:
        """Start all resources, then create the dispatcher.

        Raises:
            StartupError: a resource failed; the resources started before have been stopped.
        """
        try:
            for resources in self._resources.values():
                await resources.start()
        except BaseException:
            await self._stop_resources()
            raise
        loop = get_running_loop()
        self._suspender = Suspender(loop)
        routes = {
            message.encode(): tuple(self._bind_handler(handler) for handler in handlers)
            for message, handlers in self._handlers.items()
        }
        batcher = ObserverBatcher(loop, self._shortest_delay())
        self.dispatcher = Dispatcher(
            routes,
            self._suspender.suspend,
            _await_call,
            TaskStarter(loop).start,
            batcher.schedule,
            batcher.schedule_soon,
            self._max_messages,
        )

    async def aclose(self) -> None:
        """Stop timers and threads, then the resources in reverse order."""
        self._suspender.close()
        self.dispatcher.run_observers()
        await self._stop_resources()

    def _shortest_delay(self) -> float:
        """Return the shortest `max_delay` of all observers, whose calls share one queue."""
        observers = (
            handler
            for handlers in self._handlers.values()
            for handler in handlers
            if handler.kind is HandlerKind.OBSERVER
        )
        return min((observer.max_delay for observer in observers), default=0.0)

    def _bind_handler(self, handler: Handler) -> BoundHandler:
        resources = self._resources[handler.agent]
        return BoundHandler(
            handler,
            _by_position(handler),
            resources.__getitem__,
            self._metrics.histogram(HANDLER_SECONDS, handler.message),
            self._metrics.histogram(ACK_SECONDS, handler.message),
            self._on_error,
        )

    async def _stop_resources(self) -> None:
        for resources in reversed(self._resources.values()):
            await resources.aclose()


async def _await_call(call: PendingCall, bound: BoundHandler, values: list[Any]) -> None:
    """Call an async handler, await its result, and end the call with it.

    Middleware may raise before it returns, and may return any awaitable.
    """
    try:
        result = await bound.call(values)
    except BaseException as error:
        result = Failure(error)
    call.end(result)


def _types(agent: Agent) -> set[Any]:
    return {resource.type for resource in agent.resources}


def _by_position(handler: Handler) -> Callable[..., Any]:
    """Return the handler's function as one that accepts keyword-only parameters by position too."""
    function, count = handler.function, handler.positional_count
    names = [parameter.name for parameter in handler.parameters[count:]]
    if not names:
        return function

    def call(*values: Any) -> Any:
        return function(*values[:count], **dict(zip(names, values[count:], strict=True)))

    return call
