"""Copying: from a message's arguments to the queue of each target. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``). What happens to few requests, such as
those that are refused, is `spoakit.apps.mirror.target`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from spoakit import Headers, IPAddress, MaxFrameSize
from spoakit.apps.mirror._request_builder_cy import RequestBuilder
from spoakit.apps.mirror.exceptions import RefusedRequestError
from spoakit.apps.mirror.selection import Selector

if TYPE_CHECKING:
    from spoakit import _cython as cython
    from spoakit.apps.mirror._request_cy import IncomingRequest, OutgoingRequest
    from spoakit.apps.mirror.http._queue_cy import RequestQueue
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython
    if cython.compiled:
        from cython.cimports.spoakit.apps.mirror._request_cy import (
            IncomingRequest,
            OutgoingRequest,
        )
        from cython.cimports.spoakit.apps.mirror.http._queue_cy import RequestQueue
    else:
        from spoakit.apps.mirror._request_cy import IncomingRequest, OutgoingRequest
        from spoakit.apps.mirror.http._queue_cy import RequestQueue

COMPILED: bool = cython.compiled


class CopierListener(Protocol):
    """Owner of a copier: the target."""

    def takes_rate(self) -> bool:
        """Return whether the rate limit allows one more copy; called where there is a limit."""

    def on_refused(self, error: RefusedRequestError) -> None:
        """Count and log a request that is not copied."""

    def on_incomplete(self, request: OutgoingRequest) -> None:
        """Count and log a copy whose body is cut, or suspect."""


@cython.final
@cython.cclass
class Copier:
    """Make the copies for one target, and queue them.

    Args:
        selector: decides which requests are copied; None for all.
        is_limited: whether the listener is asked if the rate limit allows a copy.
        builder: makes the copies.
        queue: for what came over HTTP/1.
        queue_2: for what came over HTTP/2.
        listener: is told of what does not go well.
    """

    _selector: Any
    _is_limited: cython.bint
    _builder: Any
    _queue: RequestQueue
    _queue_2: RequestQueue
    _listener: Any
    _received: cython.ulonglong
    _not_selected: cython.ulonglong
    _rate_limited: cython.ulonglong

    def __init__(
        self,
        selector: Selector | None,
        is_limited: bool,
        builder: RequestBuilder,
        queue: RequestQueue,
        queue_2: RequestQueue,
        listener: CopierListener,
    ) -> None:
        self._selector = selector
        self._is_limited = is_limited
        self._builder = builder
        self._queue = queue
        self._queue_2 = queue_2
        self._listener = listener
        self._received = self._not_selected = self._rate_limited = 0

    @property
    def received(self) -> int:
        """The number of requests that came."""
        return self._received

    @property
    def not_selected(self) -> int:
        """The number of requests that the selector did not take."""
        return self._not_selected

    @property
    def rate_limited(self) -> int:
        """The number of requests over the rate limit."""
        return self._rate_limited

    @cython.ccall
    def copy(self, original: IncomingRequest) -> object:
        """Queue a copy of a request, if there is to be one."""
        self._received += 1
        if self._selector is not None and not self._selector.takes(
            original.method, original.target, original.headers, original.key, original.source
        ):
            self._not_selected += 1
            return None
        if self._is_limited and not self._listener.takes_rate():
            self._rate_limited += 1
            return None
        request: OutgoingRequest
        try:
            request = self._builder.build(original)
        except RefusedRequestError as error:
            self._listener.on_refused(error)
            return None
        if request.missing or request.suspect:
            self._listener.on_incomplete(request)
        if original.is_http2:
            self._queue_2.put(request)
        else:
            self._queue.put(request)
        return None


@cython.final
@cython.cclass
class Copiers:
    """The copiers of all targets."""

    _copiers: tuple[Any, ...]

    def __init__(self, copiers: Iterable[Copier]) -> None:
        self._copiers = tuple(copiers)

    def use(self, copiers: Iterable[Copier]) -> None:
        """Use these from now on."""
        self._copiers = tuple(copiers)

    @cython.ccall
    def copy(self, original: IncomingRequest) -> object:
        """Copy a request to the targets that are to get it."""
        copier: Copier
        for copier in self._copiers:
            copier.copy(original)
        return None


def copy(
    arg_method: bytes,
    arg_path: bytes,
    arg_ver: bytes,
    arg_hdrs: Headers,
    copiers: Copiers,
    max_frame_size: MaxFrameSize,
    arg_body: bytes | None = None,
    arg_size: int = -1,
    arg_src: IPAddress | None = None,
    arg_id: bytes = b"",
    arg_key: bytes = b"",
) -> None:
    """Observe the message ``mirror``; see `spoakit.apps.mirror.agent.create_agent`."""
    source: bytes = b"" if arg_src is None else str(arg_src).encode()
    copiers.copy(
        IncomingRequest(
            arg_method,
            arg_path,
            arg_ver,
            arg_hdrs,
            arg_body,
            arg_size,
            source,
            arg_id,
            arg_key,
            max_frame_size,
        )
    )
