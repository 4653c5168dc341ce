"""`Engine`: calls an agent's handlers like HAProxy, without sockets."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from spoakit.agent import Agent
from spoakit.agent._dispatch_cy import Dispatcher
from spoakit.agent.interfaces import PendingFrame
from spoakit.agent.runtime import Runtime
from spoakit.exceptions import CallError, ProtocolError, SpoakitError
from spoakit.metrics.families import Recording
from spoakit.metrics.memory import SharedMetrics
from spoakit.metrics.snapshot import Snapshot
from spoakit.spop import (
    Acknowledged,
    Action,
    AgentConnection,
    EngineConnection,
    EngineHello,
    Failed,
    Message,
    Scope,
)
from spoakit.spop._encode_cy import append_ack
from spoakit.testing.calls import Reply, Sendable, make_message

MAX_FRAME_SIZE: Final = 16380
"""Frame size that HAProxy offers by default, in bytes: ``tune.bufsize`` less four."""

# HAProxy has one set of variables for both scopes: req until it processes the response, then res.
_IGNORED_ON: Final = {
    Scope.RES: frozenset(
        {
            "on-client-session",
            "on-frontend-tcp-request",
            "on-backend-tcp-request",
            "on-frontend-http-request",
            "on-backend-http-request",
        }
    ),
    Scope.REQ: frozenset({"on-tcp-response", "on-http-response"}),
}


class Engine:
    """Engine in memory that calls an agent's handlers; a context manager, for unit tests.

    ::

        with Engine(rate, resources={Redis: FakeRedis()}) as engine:
            assert engine.call("rate", src=IPv4Address("192.0.2.1")) == {"txn.allowed": False}

    Frames are encoded and decoded with HAProxy's default sizes, so the same limits apply. Code runs
    in an event loop of the engine, and only while the engine starts, calls and stops.

    Args:
        agent: the agent.
        resources: objects by type, which replace the agent's resources. The replaced resources are
            not started.
        raise_errors: raise errors for which a server would log a line and send the fallback; if
            false, they are in `Reply.error`.

    Raises:
        ConfigurationError: a replacement has a type that is not a resource of the agent.
        RegistrationError: a handler of the agent cannot work.
        StartupError: (when entered) a resource failed.
        Exception: (on exit) the first exception of a resource that stopped, if `raise_errors` is
            true and the block raised nothing; all are logged.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        resources: Mapping[Any, object] = MappingProxyType({}),
        raise_errors: bool = True,
    ) -> None:
        self._agent = agent
        self._raise_errors = raise_errors
        self._errors: list[BaseException] = []
        self._metrics = SharedMetrics(1)
        self._runtime = Runtime([agent], resources, self._errors.append, self._metrics.worker(0))
        self._recording: Recording | None = None
        self._loop: asyncio.Runner | None = None
        self._declared = {(each.scope, each.name) for each in agent.variables}
        self._events: dict[str, str | None] = {}
        for handler in agent.handlers:
            # The message's handler or one of its observers may declare the event.
            known = self._events.get(handler.message)
            self._events[handler.message] = handler.trigger.event or known

    def __enter__(self) -> Self:
        if self._loop is not None:
            raise SpoakitError("the engine is already running")
        loop = asyncio.Runner()
        self._recording = Recording(self._metrics.worker(0))
        try:
            loop.run(self._runtime.start())
        except BaseException:
            self._recording.__exit__()
            loop.close()
            raise
        self._loop = loop
        self._link = _MemoryLink(self._runtime.dispatcher)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop is not None:
            with self._loop as loop:
                self._loop = None
                self._errors.clear()
                loop.run(self._runtime.aclose())
                if self._recording is not None:
                    self._recording.__exit__()
            # An exception of the block is more important than its consequences.
            if self._errors and self._raise_errors and error is None:
                raise self._errors[0]

    @property
    def metrics(self) -> Snapshot:
        """Current metrics of the agent; see `spoakit.metrics`.

        ::

            assert engine.metrics.value("logins_total", result="ok") == 1
        """
        return Snapshot.take(self._metrics)

    def call(self, message: str, /, *args: Sendable, **kwargs: Sendable) -> Reply:
        """Send one message and return the reply; see `notify`.

        Args:
            message: its name.
            args: arguments without names.
            kwargs: arguments with names; use an `Argument` for a name that is not an identifier.

        Raises:
            TypeError: SPOP has no type for an argument, or it is not of its named type.
            ValueError: an argument is out of the range of its type.
        """
        return self.notify([make_message(message, args, kwargs)])

    def notify(self, messages: Iterable[Message]) -> Reply:
        """Send messages in one frame, as HAProxy does for messages of one event.

        It returns when the handlers have ended or failed, and the observers have run. If
        `raise_errors` is true, it raises the first error.

        Raises:
            CallError: a message is unknown, its arguments do not match, its handler was late,
                the ACK exceeds the frame size, or HAProxy would ignore an action.
            Exception: an exception of a handler or an observer.
        """
        if self._loop is None:
            raise SpoakitError('the engine is not running: write "with Engine(agent) as engine"')
        messages = tuple(messages)
        self._errors.clear()
        self._errors += self._unknown(messages)
        actions = self._loop.run(self._exchange(messages))
        self._errors += self._ignored(messages, actions)
        error = self._errors[0] if self._errors else None
        if error is not None and self._raise_errors:
            raise error
        return Reply(actions, error)

    async def _exchange(self, messages: tuple[Message, ...]) -> tuple[Action, ...]:
        dispatcher, link = self._runtime.dispatcher, self._link
        oversized = dispatcher.oversized
        events = link.send(messages)
        dispatcher.dispatch(events, 0, link)
        actions = await link.receive_ack()
        # Observers of a suspended frame are scheduled by now, and run before this continues.
        await asyncio.sleep(0)
        dispatcher.run_observers()
        if dispatcher.oversized > oversized:
            self._errors.append(
                CallError(f"the ACK exceeds {MAX_FRAME_SIZE} bytes, so it is sent without actions")
            )
        return actions

    def _unknown(self, messages: Iterable[Message]) -> list[CallError]:
        return [
            CallError(
                f"agent {self._agent.name!r} has no message {message.name!r}; "
                f"it has {', '.join(sorted(self._events))}"
            )
            for message in messages
            if message.name not in self._events
        ]

    def _ignored(self, messages: Iterable[Message], actions: Iterable[Action]) -> list[CallError]:
        """Return an error for each action that HAProxy would ignore."""
        events = {self._events.get(message.name) for message in messages}
        errors = []
        for action in actions:
            if (action.scope, action.name) not in self._declared:
                errors.append(
                    CallError(
                        f"{action!r}: agent {self._agent.name!r} does not declare the variable"
                    )
                )
            elif action.scope in _IGNORED_ON and events <= _IGNORED_ON[action.scope]:
                errors.append(
                    CallError(
                        f"{action!r}: HAProxy does not set variables of this scope "
                        f"{', '.join(map(str, events))}; use txn"
                    )
                )
        return errors


class _MemoryLink:
    """Both ends of a connection, in memory; see `spoakit.agent.interfaces.EngineLink`."""

    peer = "testing.Engine"
    engine_id = "testing.Engine"
    accepts_frames = True

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._engine = EngineConnection(EngineHello(MAX_FRAME_SIZE, engine_id=self.engine_id))
        self._agent = AgentConnection()
        self._stream_id = 0
        self._waiting: asyncio.Future[None] | None = None
        self.outgoing = self._agent.outgoing
        self.received = monotonic()
        self._engine.send_hello()
        self._agent.receive_data(self._engine.data_to_send())
        self._agent.events_received()
        self._engine.receive_data(self._agent.data_to_send())
        self._engine.events_received()
        self.max_frame_size = self._agent.max_frame_size

    def send(self, messages: Iterable[Message]) -> list[Any]:
        """Send a NOTIFY, and return the events of the agent's end."""
        self._stream_id += 1
        self._engine.send_notify(messages, stream_id=self._stream_id)
        self.received = monotonic()
        self._agent.receive_data(self._engine.data_to_send())
        return self._agent.events_received()

    async def receive_ack(self) -> tuple[Action, ...]:
        """Wait for the ACK, and return its actions."""
        if self._waiting is not None:
            await self._waiting
            self._waiting = None
        self._engine.receive_data(self._agent.data_to_send())
        [event] = self._engine.events_received()
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Acknowledged)
        return event.actions

    def wait(self, frame: PendingFrame) -> None:
        self._waiting = asyncio.get_running_loop().create_future()

    def finish(self, frames: Sequence[PendingFrame]) -> None:
        [frame] = frames
        if not append_ack(self.outgoing, frame.ids, frame.actions, self.max_frame_size):
            self._dispatcher.oversized_ack(self)
        assert self._waiting is not None
        self._waiting.set_result(None)

    def close_with_error(self, frame: PendingFrame, error: ProtocolError) -> None:
        assert self._waiting is not None
        self._waiting.set_exception(error)
