"""Resources: objects that handlers share for the life of a worker, such as connections.

A resource is an async generator that yields one object. Handlers and later resources get it by a
parameter of its type. The code after the yield runs when the worker stops.
"""

import inspect
import logging
from asyncio import CancelledError, current_task
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args, get_origin

from spoakit.agent.parameters import (
    Parameter,
    ParameterKind,
    Role,
    describe,
    find_role,
    is_hashable,
    parse_parameters,
    resolve,
)
from spoakit.exceptions import ConfigurationError, RegistrationError, StartupError
from spoakit.metrics.memory import WorkerMetrics

logger = logging.getLogger("spoakit.agent")


@dataclass(frozen=True, slots=True)
class Resource:
    """A registered resource.

    Attributes:
        name: "module.qualified_name" of the function, for errors and logs.
        type: the type of the object it yields, which parameters name.
        function: the async generator function.
        parameters: the resources that it needs itself.
    """

    name: str
    type: Any
    function: Callable[..., AsyncIterator[Any]]
    parameters: tuple[Parameter, ...]


def parse_resource(
    function: Callable[..., AsyncIterator[Any]], known: Mapping[Any, Resource]
) -> Resource:
    """Return the resource that a function declares.

    Args:
        function: the decorated function.
        known: the resources registered before, by type.

    Raises:
        RegistrationError: it is not an async generator function, its return annotation does not
            name the yielded type, or it needs a resource that is not registered before it.
    """
    if not (inspect.isroutine(function) and inspect.isasyncgenfunction(function)):
        raise RegistrationError(f"resource {function!r} must be an async def with a yield")
    name = describe(function)
    parameters = parse_parameters(function)
    returned = resolve(function, function.__annotations__.get("return"))
    if get_origin(returned) not in (AsyncIterator, AsyncGenerator) or not get_args(returned):
        raise RegistrationError(f"resource {name}: annotate it with -> AsyncIterator[its type]")
    yielded = get_args(returned)[0]
    if not is_hashable(yielded) or find_role(yielded) is not Role.RESOURCE:
        raise RegistrationError(
            f"resource {name}: a parameter of type {yielded} is never a resource; yield an object "
            "of a class of its own"
        )
    if yielded in known:
        raise RegistrationError(f"resource {name}: {known[yielded].name} yields {yielded} already")
    for parameter in parameters:
        if parameter.annotation is WorkerMetrics:
            continue
        if parameter.role is not Role.RESOURCE or parameter.annotation not in known:
            raise RegistrationError(
                f"resource {name}: parameter {parameter.name!r}: a resource takes the worker's "
                "WorkerMetrics and resources that are registered before it only"
            )
    return Resource(name, yielded, function, parameters)


class ResourceSet:
    """Resources of one agent in one worker.

    Args:
        resources: the resources, in the order to start them.
        row: the worker's counters; a resource may have a parameter for them.
        overrides: for tests; objects by type, which replace resources. The generators of these
            resources do not run.
        on_error: for tests; called with exceptions of resources that stop.

    Raises:
        ConfigurationError: an override is for a type that is not a resource.
    """

    __slots__ = ("_objects", "_on_error", "_overrides", "_resources", "_stack")

    def __init__(
        self,
        resources: Sequence[Resource],
        row: WorkerMetrics,
        overrides: Mapping[Any, object] = MappingProxyType({}),
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        types = [resource.type for resource in resources]
        for override in overrides:
            if override not in types:
                raise ConfigurationError(
                    f"the agent has no resource of type {override}; it has {types}"
                )
        self._resources = resources
        self._overrides = overrides
        self._on_error = on_error
        self._objects: dict[Any, object] = {WorkerMetrics: row}
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Start all resources in order.

        Raises:
            StartupError: a resource failed; the resources started before have been stopped.
        """
        async with AsyncExitStack() as stack:
            for resource in self._resources:
                if resource.type in self._overrides:
                    self._objects[resource.type] = self._overrides[resource.type]
                else:
                    self._objects[resource.type] = await self._start(resource, stack)
            self._stack = stack.pop_all()

    async def aclose(self) -> None:
        """Stop all resources in reverse order; a failure is logged, and the others are stopped."""
        self._objects.clear()
        await self._stack.aclose()

    def __getitem__(self, resource_type: Any) -> Any:
        """Return the object of a resource that has started."""
        return self._objects[resource_type]

    async def _start(self, resource: Resource, stack: AsyncExitStack) -> object:
        by_position: list[object] = []
        by_name: dict[str, object] = {}
        for parameter in resource.parameters:
            needed = self._objects[parameter.annotation]
            if parameter.kind is ParameterKind.KEYWORD_ONLY:
                by_name[parameter.name] = needed
            else:
                by_position.append(needed)
        manager = asynccontextmanager(resource.function)(*by_position, **by_name)
        try:
            yielded: object = await manager.__aenter__()
        except StartupError:
            raise  # its text already says what failed
        except BaseException as error:
            if _ends_the_task(error):
                raise
            raise StartupError(
                f"resource {resource.name} did not start: {type(error).__name__}: {error}"
            ) from error
        stack.push_async_callback(self._stop, resource, manager)
        return yielded

    async def _stop(self, resource: Resource, manager: AbstractAsyncContextManager[object]) -> None:
        try:
            await manager.__aexit__(None, None, None)
        except BaseException as error:
            if _ends_the_task(error):
                raise
            logger.exception("resource %s failed while it stopped", resource.name)
            if self._on_error is not None:
                self._on_error(error)


def _ends_the_task(error: BaseException) -> bool:
    """Return whether an exception ends the task, and is not an error of the resource.

    A CancelledError is an error of the resource unless the task is being cancelled. SystemExit is
    always one.
    """
    if isinstance(error, CancelledError):
        task = current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt)
