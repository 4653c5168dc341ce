"""Selector on Linux AIO: io_submit(2) with IOCB_CMD_POLL, and io_getevents(2).

The kernel answers a poll request once, but a selector reports a descriptor for as long as it is
ready. So each `select` submits a request for every descriptor without a pending one, all in one
system call, and collects the answers in a second call. A request can be cancelled; its answer still
comes, and is ignored by its number.

Constants are from linux/aio_abi.h. The C library has no wrappers for these system calls, so they
are made by number.
"""

import ctypes
import errno
import os
import platform
import select
import selectors
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol, TypeAlias

from spoakit.exceptions import ConfigurationError

# io_setup, io_destroy, io_getevents, io_submit, io_cancel
_NUMBERS: Final = {
    "x86_64": (206, 207, 208, 209, 210),
    "aarch64": (0, 1, 4, 2, 3),
    "riscv64": (0, 1, 4, 2, 3),
    "loongarch64": (0, 1, 4, 2, 3),
}
_IOCB_CMD_POLL: Final = 5
# Errors and hang-ups count as readable and writable, since the next call on the descriptor reports
# them. The kernel may return more events than requested.
_READABLE: Final = select.POLLIN | select.POLLERR | select.POLLHUP
_WRITABLE: Final = select.POLLOUT | select.POLLERR | select.POLLHUP
_FIRST_CAPACITY: Final = 1024
_BATCH: Final = 256
# Longest wait in seconds while the kernel has no room for some of the requests.
_RETRY: Final = 0.01


class _Iocb(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key_and_rw_flags", ctypes.c_uint64),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("result_descriptor", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("object", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


_FileObject: TypeAlias = int | _HasFileno


class _Context:
    """Kernel context: a queue of requests, and a queue of answers.

    Raises:
        OSError: the kernel has no AIO, or `capacity` exceeds what fs.aio-max-nr leaves.
        ConfigurationError: the system is not Linux, or the processor is not in `_NUMBERS`.
    """

    __slots__ = ("_answers", "_id", "_numbers", "_syscall", "capacity")

    def __init__(self, capacity: int) -> None:
        machine = platform.machine()
        if sys.platform != "linux" or machine not in _NUMBERS:
            raise ConfigurationError(f"loop: linuxaio is for Linux, not {sys.platform} {machine}")
        self._numbers = _NUMBERS[machine]
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._answers = (_Event * _BATCH)()
        self._id = ctypes.c_ulong(0)
        self.capacity = capacity
        self._call(0, ctypes.c_long(capacity), ctypes.byref(self._id))

    def _call(self, index: int, *arguments: Any) -> int:
        result: int = self._syscall(ctypes.c_long(self._numbers[index]), *arguments)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def destroy(self) -> None:
        """Cancel all requests and free the queues."""
        self._call(1, self._id)

    def collect(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait for answers; return the request's number and the result of each.

        Args:
            timeout: seconds; 0 does not wait, None waits without limit.
        """
        spec = None
        if timeout is not None:
            nanoseconds = max(0, round(timeout * 1e9))
            spec = ctypes.byref(_Timespec(*divmod(nanoseconds, 1_000_000_000)))
        least = ctypes.c_long(timeout is None or timeout > 0)
        count = self._call(2, self._id, least, ctypes.c_long(_BATCH), self._answers, spec)
        return [(answer.data, answer.result) for answer in self._answers[:count]]

    def submit(self, requests: "list[_Request]") -> int:
        """Submit requests; return how many of them the kernel accepted, in order."""
        pointers = (ctypes.c_void_p * len(requests))(*(request.address for request in requests))
        return self._call(3, self._id, ctypes.c_long(len(requests)), pointers)

    def cancel(self, request: "_Request") -> None:
        """Cancel a request, so that the kernel answers at once and releases the file."""
        try:
            self._call(4, self._id, ctypes.c_void_p(request.address), ctypes.byref(_Event()))
        except OSError as error:
            # EINPROGRESS means that it is being cancelled, EINVAL that it has been answered.
            if error.errno not in (errno.EINPROGRESS, errno.EINVAL, errno.EAGAIN):
                raise


class _Request:
    """Poll request. It must be kept until the answer, since the kernel uses its address."""

    __slots__ = ("_iocb", "address", "descriptor", "number")

    def __init__(self, number: int, descriptor: int, events: int) -> None:
        mask = select.POLLIN if events & selectors.EVENT_READ else 0
        mask |= select.POLLOUT if events & selectors.EVENT_WRITE else 0
        self.number = number
        self.descriptor = descriptor
        self._iocb = _Iocb(data=number, opcode=_IOCB_CMD_POLL, descriptor=descriptor, buffer=mask)
        self.address = ctypes.addressof(self._iocb)


class _Keys(Mapping[Any, selectors.SelectorKey]):
    """The registered keys by file object or descriptor."""

    def __init__(self) -> None:
        self.by_descriptor: dict[int, selectors.SelectorKey] = {}

    def __getitem__(self, fileobj: _FileObject) -> selectors.SelectorKey:
        try:
            return self.by_descriptor[self.get_descriptor(fileobj)]
        except (KeyError, ValueError):
            raise KeyError(f"{fileobj!r} is not registered") from None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.by_descriptor)

    def __len__(self) -> int:
        return len(self.by_descriptor)

    def get_descriptor(self, fileobj: _FileObject) -> int:
        """Return the descriptor of a file object, even if it was registered and is closed now.

        Raises:
            ValueError: it has no descriptor.
        """
        descriptor = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if descriptor >= 0:
            return descriptor
        for key in self.by_descriptor.values():
            if key.fileobj is fileobj:
                return key.fd
        raise ValueError(f"invalid file object: {fileobj!r}")


class AioSelector(selectors.BaseSelector):
    """Selector with the interface of `selectors.EpollSelector`, on Linux AIO.

    Unregister a descriptor before closing it: the kernel holds its file while it polls.

    Raises:
        ConfigurationError: this system has no AIO or does not allow it.
    """

    def __init__(self) -> None:
        try:
            self._context = _Context(_FIRST_CAPACITY)
        except OSError as error:
            raise ConfigurationError(
                f"loop: this kernel refuses linuxaio (io_setup: {error.strerror}); see "
                "fs.aio-max-nr, or choose another loop"
            ) from error
        self._keys = _Keys()
        self._number = 0
        self._armed: dict[int, _Request] = {}  # by descriptor
        self._unarmed: set[int] = set()
        self._under_way: dict[int, _Request] = {}  # by number, cancelled ones among them
        self._closed = False

    def register(
        self, fileobj: _FileObject, events: int, data: Any = None
    ) -> selectors.SelectorKey:
        """Watch a descriptor.

        Raises:
            KeyError: it is watched already.
            ValueError: the object has no descriptor, or the events are invalid.
            OSError: there are more descriptors than fs.aio-max-nr allows.
        """
        _check_events(events)
        descriptor = self._keys.get_descriptor(fileobj)
        if descriptor in self._keys.by_descriptor:
            raise KeyError(f"{fileobj!r} (FD {descriptor}) is already registered")
        # One request for each, and as many cancelled ones since the last `select`.
        if 2 * (len(self._keys) + 1) > self._context.capacity:
            self._grow()
        key = selectors.SelectorKey(fileobj, descriptor, events, data)
        self._keys.by_descriptor[descriptor] = key
        self._unarmed.add(descriptor)
        return key

    def unregister(self, fileobj: _FileObject) -> selectors.SelectorKey:
        """Stop watching a descriptor. Raises KeyError if it is not watched."""
        key = self._keys[fileobj]
        del self._keys.by_descriptor[key.fd]
        self._disarm(key.fd)
        return key

    def modify(self, fileobj: _FileObject, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a descriptor for other events, or with other data."""
        _check_events(events)
        old = self._keys[fileobj]
        key = old._replace(events=events, data=data)
        self._keys.by_descriptor[key.fd] = key
        if events != old.events:
            self._disarm(key.fd)
            self._unarmed.add(key.fd)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return ready descriptors after at most `timeout` seconds; None waits without limit.

        A signal ends the wait with an empty list.
        """
        deadline = None if timeout is None else time.monotonic() + max(timeout, 0)
        while True:
            self._arm()
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            if self._unarmed:
                wait = _RETRY if wait is None else min(wait, _RETRY)
            try:
                answers = self._context.collect(wait)
            except InterruptedError:
                return []
            ready = [event for answer in answers if (event := self._match_answer(*answer))]
            if ready or (deadline is not None and time.monotonic() >= deadline):
                return ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return the registered keys by file object or descriptor."""
        return self._keys

    def close(self) -> None:
        """Free the kernel's queues."""
        if not self._closed:
            self._closed = True
            self._context.destroy()
            self._keys.by_descriptor.clear()
            self._armed.clear()
            self._unarmed.clear()
            self._under_way.clear()

    def _match_answer(self, number: int, result: int) -> tuple[selectors.SelectorKey, int] | None:
        request = self._under_way.pop(number)
        if self._armed.get(request.descriptor) is not request:
            return None  # cancelled
        del self._armed[request.descriptor]
        self._unarmed.add(request.descriptor)
        key = self._keys.by_descriptor[request.descriptor]
        events = selectors.EVENT_READ if result & _READABLE else 0
        events |= selectors.EVENT_WRITE if result & _WRITABLE else 0
        events &= key.events
        return (key, events) if events else None

    def _arm(self) -> None:
        while self._unarmed:
            requests = []
            for descriptor in self._unarmed:
                self._number += 1
                events = self._keys.by_descriptor[descriptor].events
                requests.append(_Request(self._number, descriptor, events))
            try:
                taken = self._context.submit(requests)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return  # no room until answers have been collected
                if error.errno != errno.EBADF:
                    raise
                # Closed while registered: never reported again, as with epoll.
                self._unarmed.discard(requests[0].descriptor)
                continue
            for request in requests[:taken]:
                self._under_way[request.number] = request
                self._armed[request.descriptor] = request
                self._unarmed.discard(request.descriptor)

    def _disarm(self, descriptor: int) -> None:
        self._unarmed.discard(descriptor)
        request = self._armed.pop(descriptor, None)
        if request is not None:
            self._context.cancel(request)

    def _grow(self) -> None:
        """Create larger queues, and submit pending requests again there."""
        larger = _Context(self._context.capacity * 2)
        self._context.destroy()
        self._context = larger
        self._under_way.clear()
        self._unarmed.update(self._armed)
        self._armed.clear()


def _check_events(events: int) -> None:
    if not events or events & ~(selectors.EVENT_READ | selectors.EVENT_WRITE):
        raise ValueError(f"invalid events: {events!r}")
