"""Copying of requests, from a message's arguments to the queue of each target. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``). Rare events, for example refused
requests, are handled by `spoakit.apps.mirror.target`.
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
    """Interface through which a copier calls its target."""

    def is_within_rate(self) -> bool:
        """Return whether the rate limit allows one more copy; called only if there is a limit."""

    def on_refused(self, error: RefusedRequestError) -> None:
        """Count and log a request that is not copied."""

    def on_incomplete(self, request: OutgoingRequest) -> None:
        """Count and log a copy whose body is cut, or probably cut."""


@cython.final
@cython.cclass
class Copier:
    """Copy requests for one target, and queue the copies.

    Args:
        selector: decides which requests are copied; None for all.
        is_limited: whether there is a rate limit, which the listener is asked about.
        builder: makes the copies.
        queue: gets the copies of HTTP/1 requests.
        queue_2: gets the copies of HTTP/2 requests.
        listener: called for requests that are refused or incomplete.
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
        """The number of requests received from HAProxy."""
        return self._received

    @property
    def not_selected(self) -> int:
        """The number of requests that the selector did not select."""
        return self._not_selected

    @property
    def rate_limited(self) -> int:
        """The number of requests over the rate limit."""
        return self._rate_limited

    @cython.ccall
    def copy(self, original: IncomingRequest) -> object:
        """Queue a copy of a request, unless it is not selected, over the rate limit, or refused."""
        self._received += 1
        if self._selector is not None and not self._selector.selects(
            original.method, original.target, original.headers, original.key, original.source
        ):
            self._not_selected += 1
            return None
        if self._is_limited and not self._listener.is_within_rate():
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

    def replace(self, copiers: Iterable[Copier]) -> None:
        """Replace the copiers; called after a reload."""
        self._copiers = tuple(copiers)

    @cython.ccall
    def copy(self, original: IncomingRequest) -> object:
        """Copy a request to each target that selects it."""
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
    """Handle the message ``mirror``; see `spoakit.apps.mirror.agent.create_agent`."""
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
