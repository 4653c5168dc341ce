"""The control socket: a running spoa-iprep is asked and told things over a Unix socket.

Who may do that is what the socket's permissions say. A request is a JSON object on a line, and so
is its answer: what was asked for, or ``{"error": "what is wrong"}``.
"""

import asyncio
import errno
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeAlias, cast

from spoakit.exceptions import SpoakitError, StartupError
from spoakit.logs import Throttle

Request: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]
Handle: TypeAlias = Callable[[Request], Awaitable[Answer]]

MAX_REQUEST: Final = 64 * 1024
"""The longest request, in bytes."""

_MAX_CONNECTIONS: Final = 32
# Seconds that a caller has to send the rest of a request, or to take an answer.
_PATIENCE: Final = 10.0

logger = logging.getLogger("spoakit.iprep")
throttle = Throttle(logger)


class ControlError(SpoakitError):
    """A request that could not be made or was refused; the text says why."""


@asynccontextmanager
async def serve_control(path: str, mode: int, handle: Handle) -> AsyncIterator[None]:
    """Answer requests on a Unix socket as long as the context lasts.

    Args:
        path: the socket's path; one that nobody listens on any more is replaced.
        mode: its permissions.
        handle: answers a request; a SpoakitError it raises becomes an error's answer.

    Raises:
        StartupError: the path cannot be listened on.
    """
    listener = _listen(path, mode)
    inode = os.stat(path).st_ino
    conversations: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        conversations.add(task)
        try:
            if len(conversations) <= _MAX_CONNECTIONS:
                await _converse(reader, writer, handle)
            else:
                throttle.warning("many", "control: over %d connections at once", _MAX_CONNECTIONS)
        finally:
            conversations.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(converse, sock=listener, limit=MAX_REQUEST)
    try:
        yield
    finally:
        server.close()
        for task in tuple(conversations):
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)
        with suppress(OSError):
            if os.stat(path).st_ino == inode:  # and not that of a successor
                os.unlink(path)


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handle
) -> None:
    try:
        while True:
            async with asyncio.timeout(_PATIENCE):
                line = await reader.readuntil(b"\n")
            answer = json.dumps(await _answer(line, handle))
            async with asyncio.timeout(_PATIENCE):
                writer.write(answer.encode() + b"\n")
                await writer.drain()
    except (asyncio.IncompleteReadError, TimeoutError, OSError):
        pass  # the caller has gone, or is as good as gone
    except asyncio.LimitOverrunError:
        error = f"the request is over {MAX_REQUEST} bytes long"
        throttle.warning("long", "control: %s", error)
        writer.write(json.dumps({"error": error}).encode() + b"\n")


async def _answer(line: bytes, handle: Handle) -> Answer:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {"error": f"the request is not JSON: {error}"}
    if not isinstance(request, dict):
        return {"error": "the request is not a JSON object"}
    try:
        return await handle(request)
    except SpoakitError as error:
        return {"error": str(error)}
    except Exception as error:
        logger.exception("control: a request failed")
        return {"error": f"it failed: {type(error).__name__}: {error}"}


def _listen(path: str, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        # Between bind and chmod nobody else may connect.
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        os.chmod(path, mode)
        listener.listen()
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)  # the latter for a path that is too long
        raise StartupError(f"control socket {path!r}: {reason}") from None
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on.

    Raises:
        OSError: there is something else.
    """
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "what is there is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def ask(path: str, request: Request, timeout: float = _PATIENCE) -> Answer:
    """Make a request and return its answer; for the commands that speak to a running agent.

    Raises:
        ControlError: nobody answers, or the answer is an error.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ControlError(
                f"no spoa-iprep answers at {path!r}: {reason}; is it running, with this control "
                "socket, and may you use it?"
            ) from None
    if not line.endswith(b"\n"):
        raise ControlError(f"spoa-iprep at {path!r} closed the connection without an answer")
    try:
        answer: Any = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ControlError(f"what answers at {path!r} is no spoa-iprep")
    if "error" in answer:
        raise ControlError(str(answer["error"]))
    return cast(Answer, answer)
