"""Control socket: commands for a running spoa-iprep, over a Unix socket.

Its permissions say who may use it. A request is a JSON object on a line, and so is its response:
what was asked for, or ``{"error": "what is wrong"}``.
"""

import asyncio
import errno
import json
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, TypeAlias, cast

from spoakit.apps.iprep.config.schema import ControlSettings
from spoakit.exceptions import SpoakitError, StartupError
from spoakit.logs import Throttle
from spoakit.server import change_owner, group_id, user_id

Request: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]
Handle: TypeAlias = Callable[[Request, int], Awaitable[Answer]]
"""Answer a request of a user, by the user's number; -1 where the system does not say it."""

MAX_REQUEST: Final = 64 * 1024
"""The longest request, in bytes."""

# Connections beyond these wait in the kernel's queue until others end.
_MAX_CONNECTIONS: Final = 256
_BACKLOG: Final = 1024
# Seconds that a caller has to send the rest of a request, or to take a response.
_PATIENCE: Final = 10.0
# Longer than that, so that one who waits outlasts callers that say nothing.
_ASK_TIMEOUT: Final = 15.0
_CONNECT_INTERVAL: Final = 0.05
# Seconds between two looks at whether the socket's file is still there, and ours.
_LOOK_INTERVAL: Final = 0.5
_ACCEPT_PAUSE: Final = 0.5
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: process, user, group

logger = logging.getLogger("spoakit.iprep")
throttle = Throttle(logger)


class ControlError(SpoakitError):
    """A request that could not be made or was refused; the text says why."""


class RefusedError(ControlError):
    """A request whose response is an error; the connection can be used further."""


@asynccontextmanager
async def serve_control(settings: ControlSettings, handle: Handle) -> AsyncIterator[None]:
    """Answer requests on a Unix socket as long as the context lasts.

    Args:
        settings: the socket's path and permissions; one that nobody listens on any more is
            replaced.
        handle: answers a request; a SpoakitError it raises becomes an error's response.

    Raises:
        StartupError: the path cannot be listened on.
    """
    server = _Server(settings, handle)
    serving = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await server.close()


class _Listener:
    """Listening socket and its file.

    Args:
        settings: its path and permissions.

    Raises:
        StartupError: the path cannot be listened on.
    """

    def __init__(self, settings: ControlSettings) -> None:
        assert settings.path is not None
        self._path = settings.path
        self.socket = _listen(settings)
        self._identity = _identity_of(self._path)

    @property
    def is_reachable(self) -> bool:
        """Whether its path leads to it, as it does until somebody removes or replaces the file."""
        return self._identity is not None and _identity_of(self._path) == self._identity

    def close(self) -> None:
        """Close it, and remove its file, unless that is another's by now."""
        self.socket.close()
        if self.is_reachable:
            with suppress(OSError):
                os.unlink(self._path)


class _Server:
    """Server of the control socket; it listens anew where the socket's file is gone."""

    def __init__(self, settings: ControlSettings, handle: Handle) -> None:
        self._settings = settings
        self._handle = handle
        self._listener = _Listener(settings)
        self._slots = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._conversations: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Accept connections until cancelled, as many at a time as there are slots."""
        while True:
            accepting = asyncio.create_task(self._accept())
            try:
                while self._listener.is_reachable and not accepting.done():
                    await asyncio.wait((accepting,), timeout=_LOOK_INTERVAL)
            finally:
                accepting.cancel()
                await asyncio.gather(accepting, return_exceptions=True)
            if not self._listener.is_reachable:
                await self._listen_again()

    async def close(self) -> None:
        """End all conversations, and remove the socket."""
        for task in tuple(self._conversations):
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        """Accept connections until that fails."""
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                connection, _ = await loop.sock_accept(self._listener.socket)
            except OSError as error:  # most likely there are no more descriptors
                self._slots.release()
                throttle.warning("accept", "control: no connection can be accepted: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            except BaseException:
                self._slots.release()
                raise
            task = asyncio.create_task(self._converse(connection))
            self._conversations.add(task)
            task.add_done_callback(self._end_conversation)

    def _end_conversation(self, task: asyncio.Task[None]) -> None:
        self._conversations.discard(task)
        self._slots.release()

    async def _converse(self, connection: socket.socket) -> None:
        user = _user_of(connection)
        try:
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_REQUEST)
        except OSError:
            connection.close()
            return
        try:
            await _converse(reader, writer, self._handle, user)
        finally:
            writer.close()

    async def _listen_again(self) -> None:
        path = self._settings.path
        try:
            listener = _Listener(self._settings)
        except StartupError as error:
            throttle.error("gone", "%s; commands cannot reach this spoa-iprep", error)
            await asyncio.sleep(_LOOK_INTERVAL)
            return
        self._listener.socket.close()
        self._listener = listener
        logger.warning("control socket %r was removed; it is there again", path)


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handle, user: int
) -> None:
    try:
        while True:
            async with asyncio.timeout(_PATIENCE):
                line = await reader.readuntil(b"\n")
            answer = json.dumps(await _answer(line, handle, user))
            async with asyncio.timeout(_PATIENCE):
                writer.write(answer.encode() + b"\n")
                await writer.drain()
    except (asyncio.IncompleteReadError, TimeoutError, OSError):
        pass  # the caller has gone, or is as good as gone
    except asyncio.LimitOverrunError:
        error = f"the request is over {MAX_REQUEST} bytes long"
        throttle.warning("long", "control: %s", error)
        writer.write(json.dumps({"error": error}).encode() + b"\n")


async def _answer(line: bytes, handle: Handle, user: int) -> Answer:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {"error": f"the request is not JSON: {error}"}
    if not isinstance(request, dict):
        return {"error": "the request is not a JSON object"}
    try:
        return await handle(request, user)
    except SpoakitError as error:
        return {"error": str(error)}
    except Exception as error:
        logger.exception("control: a request failed")
        return {"error": f"it failed: {type(error).__name__}: {error}"}


def _user_of(connection: socket.socket) -> int:
    """Return the number of the user at the other end; -1 where the system does not say it."""
    if not hasattr(socket, "SO_PEERCRED"):
        return -1
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(data)[1]
    return user


def _identity_of(path: str) -> tuple[int, int, int] | None:
    """Return what tells a file from a later one of its name; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _listen(settings: ControlSettings) -> socket.socket:
    path = settings.path
    assert path is not None
    owner = user_id("control.owner", settings.owner)
    group = group_id("control.group", settings.group)
    listener = socket.socket(socket.AF_UNIX)
    try:
        if settings.is_default:
            _make_folder(os.path.dirname(path))
        _remove_stale(path)
        # Between bind and chmod nobody else may connect.
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        if (owner, group) != (-1, -1):
            change_owner(path, owner, group)
        os.chmod(path, settings.mode)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)  # the latter for a path that is too long
        raise StartupError(f"control socket {path!r}: {reason}") from None
    except StartupError:
        listener.close()
        with suppress(OSError):
            os.unlink(path)
        raise
    return listener


def _make_folder(folder: str) -> None:
    """Make the folder of the default path, which others may look into if it is root's."""
    os.makedirs(folder, mode=0o755 if os.geteuid() == 0 else 0o700, exist_ok=True)


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on.

    Raises:
        OSError: there is something else.
    """
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # one whose queue is full is in use
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            pass


class Connection:
    """Connection of a command to a running spoa-iprep.

    Args:
        path: its control socket.
        timeout: seconds that a response may take; None for any time.

    Raises:
        ControlError: nobody listens.
    """

    def __init__(self, path: str, timeout: float | None = _ASK_TIMEOUT) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._lines = self._socket.makefile("rb")
        try:
            with self._explained():
                self._connect(_ASK_TIMEOUT if timeout is None else timeout)
                self._socket.settimeout(timeout)
        except BaseException:
            self.close()
            raise

    def ask(self, request: Request) -> Answer:
        """Make a request and return its response.

        Raises:
            RefusedError: the response is an error.
            ControlError: nobody responds.
        """
        with self._explained():
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise ControlError(
                f"spoa-iprep at {self._path!r} closed the connection without an answer"
            )
        try:
            answer: Any = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ControlError(f"what answers at {self._path!r} is not a spoa-iprep")
        if "error" in answer:
            raise RefusedError(str(answer["error"]))
        return cast(Answer, answer)

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._socket.close()

    def _connect(self, timeout: float) -> None:
        """Connect; where too many wait already, try again until the time is over."""
        give_up_at = time.monotonic() + timeout
        self._socket.settimeout(timeout)
        while True:
            try:
                return self._socket.connect(self._path)
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise
            time.sleep(_CONNECT_INTERVAL)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise ControlError(
                f"no spoa-iprep answers at {self._path!r}: {reason}; is it running, with this "
                "control socket, and may you use it?"
            ) from None


def ask(path: str, request: Request, timeout: float | None = _ASK_TIMEOUT) -> Answer:
    """Make one request and return its response; for the commands that speak to a running agent.

    Raises:
        ControlError: nobody responds, or the response is an error.
    """
    connection = Connection(path, timeout)
    try:
        return connection.ask(request)
    finally:
        connection.close()
