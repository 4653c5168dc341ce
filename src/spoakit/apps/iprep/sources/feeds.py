"""Lists and databases that come from a web server, and the last good copy of each on the disk.

The folder with the copies is shared by all processes: whoever finds a download due takes a lock,
and the time of the next one is written beside the copy, so that none is downloaded twice.
"""

import fcntl
import hashlib
import http.client
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import IO, BinaryIO, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit

import msgspec

from spoakit.apps.iprep.config.sources import MIN_INTERVAL, FeedSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.sources.chunks import chunks_of
from spoakit.apps.urls import without_user

_PIECE_SIZE: Final = 64 * 1024
_JITTER: Final = 0.1
_MAX_HEADER: Final = 1024
# A server may ask for a pause of this many seconds at most.
_MAX_RETRY_AFTER: Final = 86_400.0
_RETRY_STATUSES: Final = (429, 503)
# A list with fewer entries may lose all of them.
_MIN_GUARDED: Final = 100
_GZIP: Final = b"\x1f\x8b"
_HTML: Final = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")

# Statuses by which servers refuse HEAD, and may respond to GET.
_NO_HEAD: Final = (400, 403, 404, 405, 501)

# Reads a file, and returns how many entries it has, or raises a SourceError.
Count: TypeAlias = Callable[[Path], int]

T = TypeVar("T")


class Outcome(Enum):
    """What became of an attempt to download."""

    NEW = "new"
    UNCHANGED = "unchanged"
    NOT_DUE = "not due"
    BUSY = "another process is at it"


class FeedState(msgspec.Struct, frozen=True):
    """What is known of a feed, kept beside its copy.

    Attributes:
        etag: of the copy, "" for none.
        last_modified: of the copy, "" for none.
        entries: how many the copy has.
        checked: when the copy was last known to be what the server has, in seconds since the epoch.
        due: when to ask again, in seconds since the epoch.
        error: why the last attempt failed, "" if it did not.
        retry_after: the pause that the server asked for, in seconds, 0 for none.
    """

    etag: str = ""
    last_modified: str = ""
    entries: int = 0
    checked: float = 0.0
    due: float = 0.0
    error: str = ""
    retry_after: float = 0.0


# Made here, under the import lock: msgspec fills its description of a class at its first use, and
# a second thread that decodes at that moment crashes.
_STATE: Final = msgspec.json.Decoder(FeedState)


class _DownloadError(SourceError):
    """A download failed, and the server asked for a pause of some seconds."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Feed:
    """A file of a web server and its copy.

    All methods block and are for a thread.

    Args:
        url: where it is.
        settings: how it is downloaded.
        folder: for the copies of all feeds; made if it is not there.
        count: reads a download before it is taken.
        reading: how that reads it. Those who read one URL alike share a copy; others would find
            other numbers of entries, and have copies of their own.
        has_lines: whether it is a text. Without its length being known, such a download may be cut
            off anywhere, so that a last line without an end is not used.

    Attributes:
        path: the copy, which may not be there yet. It is replaced by renaming.
    """

    def __init__(
        self,
        url: str,
        settings: FeedSettings,
        folder: Path,
        count: Count,
        reading: str = "",
        *,
        has_lines: bool = True,
    ) -> None:
        self._url, self._authorization = without_user(url)
        self._settings = settings
        self._folder = folder
        self._count = count
        self._has_lines = has_lines
        name = hashlib.sha256(f"{url} {reading}".encode()).hexdigest()[:32]
        self.path = folder / f"{name}.feed"
        self._state_path = folder / f"{name}.json"
        self._lock_path = folder / f"{name}.lock"
        self._new_path = folder / f"{name}.new"

    def state(self) -> FeedState:
        """Return what is known of the feed; of one that is not, nothing."""
        try:
            state = _STATE.decode(self._state_path.read_bytes())
        except (OSError, msgspec.DecodeError):
            return FeedState()
        if not state.error and not self.path.exists():
            return FeedState()  # somebody removed the copy
        longest = max(self._settings.interval, state.retry_after)
        if state.due > time.time() + longest * (1 + _JITTER):
            # The clock was wrong, or the interval was longer.
            return msgspec.structs.replace(state, due=0.0)
        return state

    def fetch(self, *, is_forced: bool = False, accepts_shrink: bool = False) -> Outcome:
        """Download the feed if it is due and has changed, and no other process is at it.

        Args:
            is_forced: whether to download it even if it is not due.
            accepts_shrink: whether a list that lost more entries than `max-shrink` is taken.

        Raises:
            SourceError: it could not be had, or was refused; the copy is what it was.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock() as locked:
                if not locked:
                    return Outcome.BUSY
                state = self.state()
                if time.time() < state.due and not is_forced:
                    return Outcome.NOT_DUE
                return self._attempt(state, accepts_shrink)
        except OSError as error:
            raise SourceError(f"{self._folder}: {error.strerror or error}") from None

    def probe(self) -> str:
        """Ask the server for the headers alone, or for the list where it does not take that.

        Returns:
            The status of its response: "200 OK".

        Raises:
            SourceError: there was none, or it is an error.
        """
        opener = _opener(_trust(self._settings.tls.ca_file))
        for method in ("HEAD", "GET"):
            request = self._request(FeedState(), method)
            try:
                with opener.open(request, timeout=self._settings.timeout) as response:
                    return f"{response.status} {response.reason}"
            except urllib.error.HTTPError as error:
                error.close()
                if method == "GET" or error.code not in _NO_HEAD:
                    raise SourceError(f"the server answered {error.code} {error.reason}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise SourceError(f"it cannot be downloaded: {_reason(error)}") from None
        raise AssertionError("GET has returned or raised")

    def _attempt(self, state: FeedState, accepts_shrink: bool) -> Outcome:
        try:
            return self._download(state, accepts_shrink)
        except SourceError as error:
            asked = error.retry_after if isinstance(error, _DownloadError) else 0.0
            retry = max(MIN_INTERVAL, self._settings.interval * _JITTER, asked)
            self._write(
                msgspec.structs.replace(
                    state, error=str(error), due=_later(retry), retry_after=asked
                )
            )
            raise
        finally:
            self._new_path.unlink(missing_ok=True)

    def _download(self, state: FeedState, accepts_shrink: bool) -> Outcome:
        headers = _within(self._settings.timeout, lambda: self._receive(state))
        if headers is None:
            self._write(self._good(state))
            return Outcome.UNCHANGED
        self._refuse_html(headers.get_content_type())
        entries = self._count(self._new_path)
        if state.checked or entries:
            refuse_shrunk(0 if accepts_shrink else state.entries, entries, self._settings)
        elif not self._settings.may_be_empty:
            raise SourceError("it has no entries; may-be-empty = true takes it as it is")
        os.replace(self._new_path, self.path)
        self._write(
            self._good(
                FeedState(
                    etag=headers.get("ETag", "")[:_MAX_HEADER],
                    last_modified=headers.get("Last-Modified", "")[:_MAX_HEADER],
                    entries=entries,
                )
            )
        )
        return Outcome.NEW

    def _receive(self, state: FeedState) -> http.client.HTTPMessage | None:
        """Write the response's body to the new file; return its headers, None if unchanged."""
        opener = _opener(_trust(self._settings.tls.ca_file))
        try:
            with opener.open(
                self._request(state, "GET"), timeout=self._settings.timeout
            ) as response:
                if response.status != 200:
                    raise SourceError(f"the server answered {response.status} {response.reason}")
                self._save(response)
                headers: http.client.HTTPMessage = response.headers
                return headers
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 304 and state.checked and self.path.exists():
                return None
            raise _DownloadError(
                f"the server answered {error.code} {error.reason}", _retry_after(error)
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(getattr(error, "reason", error), TimeoutError):
                raise _too_slow(self._settings.timeout) from None
            raise SourceError(f"it cannot be downloaded: {_reason(error)}") from None

    def _request(self, state: FeedState, method: str) -> urllib.request.Request:
        request = urllib.request.Request(self._url, headers=self._headers(state), method=method)
        # Secrets go to this server, and not to another one that it redirects to.
        if self._authorization is not None:
            request.add_unredirected_header("Authorization", self._authorization)
        for name, value in self._settings.headers:
            request.add_unredirected_header(name.capitalize(), value)
        return request

    def _headers(self, state: FeedState) -> dict[str, str]:
        headers = {"User-Agent": "spoa-iprep", "Accept-Encoding": "identity"}
        if self.path.exists():
            if state.etag:
                headers["If-None-Match"] = state.etag
            if state.last_modified:
                headers["If-Modified-Since"] = state.last_modified
        return headers

    def _save(self, response: http.client.HTTPResponse) -> None:
        """Write a response's body to the new file, whole or not at all."""
        left = self._settings.max_size
        expected = response.length
        with open(self._new_path, "w+b") as file:
            while data := response.read1(_PIECE_SIZE):
                left -= len(data)
                if left < 0:
                    raise SourceError(
                        f"it is larger than {self._settings.max_size} bytes (max-size)"
                    )
                file.write(data)
            size = file.tell()
            if expected is not None and size != expected:
                raise SourceError(f"it is cut off: {size} of {expected} bytes came")
            if expected is None and not response.chunked and self._has_lines:
                _cut_last_line(file)
            file.flush()
            os.fsync(file.fileno())

    def _refuse_html(self, content_type: str) -> None:
        with open(self._new_path, "rb") as file:
            first = _beginning(file, self._settings.max_size)
        is_html = content_type in ("text/html", "application/xhtml+xml")
        if first.startswith(_HTML) or (is_html and not self._settings.allow_html):
            hint = (
                "" if first.startswith(_HTML) else "; allow-html = true takes a list of this type"
            )
            raise SourceError(f"the server answered with a page of HTML{hint}")

    def _good(self, state: FeedState) -> FeedState:
        return msgspec.structs.replace(
            state,
            checked=time.time(),
            due=_later(self._settings.interval),
            error="",
            retry_after=0.0,
        )

    def _write(self, state: FeedState) -> None:
        temporary = self._state_path.with_suffix(".json.new")
        temporary.write_bytes(msgspec.json.encode(state))
        os.replace(temporary, self._state_path)

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """Say whether this process has the feed for itself; the lock ends with the process."""
        with open(self._lock_path, "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def refuse_shrunk(before: int, now: int, settings: FeedSettings) -> None:
    """Refuse a list that lost more of its entries than it may; a short one may lose all.

    Args:
        before: how many entries the list had that is in use.
        now: how many it has now.
        settings: how much it may lose.

    Raises:
        SourceError: it lost more.
    """
    if before < _MIN_GUARDED or (not now and settings.may_be_empty):
        return
    if not now:
        raise SourceError(
            f"it shrank from {before} entries to none; may-be-empty = true takes it, and so does "
            "the command update with --accept-shrink"
        )
    if now < before * (1 - settings.max_shrink / 100):
        raise SourceError(
            f"it shrank from {before} entries to {now}, "
            f"by more than {settings.max_shrink:g} percent (max-shrink); "
            "the command update takes it with --accept-shrink"
        )


def _within(timeout: float, receive: Callable[[], T]) -> T:
    """Return what a function returns, which runs in a thread of its own.

    Timeouts of sockets begin anew with each byte, and looking up a name has none. A thread that is
    given up ends with its process, which is the job's.

    Raises:
        SourceError: it took longer; or what the function raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(receive())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="download", daemon=True)
    thread.start()
    thread.join(timeout)
    if errors:
        raise errors[0]
    if not results:
        raise _too_slow(timeout)
    return results[0]


def _too_slow(timeout: float) -> SourceError:
    return SourceError(f"it took longer than {timeout:g} s (timeout)")


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Return the pause that a server asks for, in seconds: 0 for none, a day at most."""
    text = error.headers.get("Retry-After", "").strip()
    if error.code not in _RETRY_STATUSES or not text:
        return 0.0
    if text.isascii() and text.isdecimal():
        seconds = float(text[:_MAX_HEADER])
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER)


def _cut_last_line(file: BinaryIO) -> None:
    """Cut off a last line that has no end; what is in gzip has an end of its own."""
    file.seek(0)
    if file.read(len(_GZIP)) == _GZIP:
        return
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _PIECE_SIZE)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            file.truncate(start + newline + 1)
            return
        end = start
    file.truncate(0)


def _later(seconds: float) -> float:
    """Return the time so many seconds from now, and up to a tenth more by chance."""
    return time.time() + seconds * (1 + _JITTER * random.random())


def _trust(ca_file: str | None) -> ssl.SSLContext:
    """Return what servers are verified with: the certificates of a file, or the system's."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise SourceError(f"tls.ca-file: {ca_file!r}: {error}") from None


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"the server's certificate does not verify: {reason.verify_message} (tls.ca-file names "
            "whom to trust instead of the system's authorities)"
        )
    return str(reason) or type(error).__name__


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but not from a server that was verified to one that cannot be."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """See the class above."""
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            fp.close()
            raise SourceError("the server redirects from https:// to a URL that is not")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and _origin(newurl) == _origin(req.full_url):
            request.unredirected_hdrs.update(req.unredirected_hdrs)
        return request


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _opener(trust: ssl.SSLContext) -> urllib.request.OpenerDirector:
    """Return what opens http:// and https:// and nothing else, also when redirected."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=trust),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _beginning(file: BinaryIO, max_size: int) -> bytes:
    """Return how a file begins, out of gzip, without white space and in lower case."""
    pieces = islice(chunks_of(file, max_size), 1)
    return b"".join(pieces)[:_MAX_HEADER].lstrip().lower()
