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
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import IO, BinaryIO, Final, TypeAlias
from urllib.parse import urlsplit

import msgspec

from spoakit.apps.iprep.config.settings import MIN_INTERVAL, FeedSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.sources.chunks import chunks_of
from spoakit.apps.urls import without_user

_PIECE_SIZE: Final = 64 * 1024
_JITTER: Final = 0.1
_MAX_HEADER: Final = 1024
_HTML: Final = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")

# Reads a file, and returns how many entries it has, or raises a SourceError.
Count: TypeAlias = Callable[[Path], int]


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
    """

    etag: str = ""
    last_modified: str = ""
    entries: int = 0
    checked: float = 0.0
    due: float = 0.0
    error: str = ""


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

    Attributes:
        path: the copy, which may not be there yet. It is replaced by renaming.
    """

    def __init__(
        self, url: str, settings: FeedSettings, folder: Path, count: Count, reading: str = ""
    ) -> None:
        self._url, self._authorization = without_user(url)
        self._settings = settings
        self._folder = folder
        self._count = count
        name = hashlib.sha256(f"{url} {reading}".encode()).hexdigest()[:32]
        self.path = folder / f"{name}.feed"
        self._state_path = folder / f"{name}.json"
        self._lock_path = folder / f"{name}.lock"
        self._new_path = folder / f"{name}.new"

    def state(self) -> FeedState:
        """Return what is known of the feed; of one that is not, nothing."""
        try:
            state = msgspec.json.decode(self._state_path.read_bytes(), type=FeedState)
        except (OSError, msgspec.DecodeError):
            return FeedState()
        if not state.error and not self.path.exists():
            return FeedState()  # somebody removed the copy
        if state.due > time.time() + self._settings.interval * (1 + _JITTER):
            # The clock was wrong, or the interval was longer.
            return msgspec.structs.replace(state, due=0.0)
        return state

    def fetch(self) -> Outcome:
        """Download the feed if it is due and has changed, and no other process is at it.

        Raises:
            SourceError: it could not be had, or was refused; the copy is what it was.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock() as locked:
                if not locked:
                    return Outcome.BUSY
                state = self.state()
                if time.time() < state.due:
                    return Outcome.NOT_DUE
                return self._attempt(state)
        except OSError as error:
            raise SourceError(f"{self._folder}: {error.strerror or error}") from None

    def _attempt(self, state: FeedState) -> Outcome:
        try:
            return self._download(state)
        except SourceError as error:
            retry = max(MIN_INTERVAL, self._settings.interval * _JITTER)
            self._write(msgspec.structs.replace(state, error=str(error), due=_later(retry)))
            raise
        finally:
            self._new_path.unlink(missing_ok=True)

    def _download(self, state: FeedState) -> Outcome:
        request = urllib.request.Request(self._url, headers=self._headers(state))
        if self._authorization is not None:
            # It is not for whom one is redirected to.
            request.add_unredirected_header("Authorization", self._authorization)
        opener = _opener(_trust(self._settings.ca_file))
        deadline = time.monotonic() + self._settings.timeout
        try:
            with opener.open(request, timeout=self._settings.timeout) as response:
                self._save(response, deadline)
                headers = response.headers
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 304 and state.entries:
                self._write(self._good(state))
                return Outcome.UNCHANGED
            raise SourceError(f"the server answered {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SourceError(f"it cannot be downloaded: {_reason(error)}") from None
        self._refuse_html(headers.get_content_type())
        entries = self._count(self._new_path)
        self._refuse_shrunk(state.entries, entries)
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

    def _headers(self, state: FeedState) -> dict[str, str]:
        headers = {"User-Agent": "spoa-iprep", "Accept-Encoding": "identity"}
        if self.path.exists():
            if state.etag:
                headers["If-None-Match"] = state.etag
            if state.last_modified:
                headers["If-Modified-Since"] = state.last_modified
        return headers

    def _save(self, response: http.client.HTTPResponse, deadline: float) -> None:
        """Write an answer's body to the new file, whole or not at all."""
        left = self._settings.max_size
        expected = response.length
        with open(self._new_path, "wb") as file:
            while data := response.read1(_PIECE_SIZE):
                left -= len(data)
                if left < 0:
                    raise SourceError(
                        f"it is larger than {self._settings.max_size} bytes (max-size)"
                    )
                if time.monotonic() > deadline:
                    raise SourceError(f"it took longer than {self._settings.timeout:g} s")
                file.write(data)
            size = file.tell()
            if expected is not None and size != expected:
                raise SourceError(f"it is cut off: {size} of {expected} bytes came")
            file.flush()
            os.fsync(file.fileno())

    def _refuse_html(self, content_type: str) -> None:
        with open(self._new_path, "rb") as file:
            first = _beginning(file, self._settings.max_size)
        if content_type in ("text/html", "application/xhtml+xml") or first.startswith(_HTML):
            raise SourceError("the server answered with a page of HTML")

    def _refuse_shrunk(self, before: int, now: int) -> None:
        if not now:
            raise SourceError("it is empty")
        if now < before * (1 - self._settings.max_shrink / 100):
            raise SourceError(
                f"it shrank from {before} entries to {now}, "
                f"by more than {self._settings.max_shrink:g} percent"
            )

    def _good(self, state: FeedState) -> FeedState:
        return msgspec.structs.replace(
            state, checked=time.time(), due=_later(self._settings.interval), error=""
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
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
