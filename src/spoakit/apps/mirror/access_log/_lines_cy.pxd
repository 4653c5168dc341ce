# What other compiled modules call without going through Python.
cimport cython
from spoakit.apps.mirror._buffer_cy cimport Buffer
from spoakit.apps.mirror._request_cy cimport OutgoingRequest


cdef class Response:
    cdef public bytes version
    cdef public Py_ssize_t status
    cdef public long long received
    cdef public double sent_at
    cdef public double first_byte_at


@cython.final
cdef class TargetLabel:
    cdef str _name
    cdef bytes _origin
    cdef bytes _quoted


@cython.final
cdef class AccessLog:
    cdef object _writer
    cdef unsigned int _worker
    cdef bint _quiet
    cdef bint _buffered
    cdef bint _json
    cdef bint _names_targets
    cdef object _path
    cdef long long _share
    cdef long long _credit
    cdef bytes _prefix
    cdef double _started_at
    cdef unsigned long long _second
    cdef bytes _start
    cdef unsigned int _status
    cdef bytes _version
    cdef bytes _middle
    cdef Buffer _lines
    cdef object _timer

    cdef bint _is_due(self) noexcept
    cdef Py_ssize_t _add_text(
        self,
        Response response,
        OutgoingRequest request,
        TargetLabel target,
        bytes result,
        double time,
    ) except -1
    cdef Py_ssize_t _add_json(
        self,
        Response response,
        OutgoingRequest request,
        TargetLabel target,
        bytes result,
        double time,
    ) except -1
    cpdef object write(
        self,
        Response response,
        OutgoingRequest request,
        TargetLabel target,
        bytes result,
        double now,
    )
