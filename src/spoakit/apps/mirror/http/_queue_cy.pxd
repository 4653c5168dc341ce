# What other compiled modules call without going through Python.
cimport cython
from spoakit.apps.mirror._request_cy cimport OutgoingRequest
from spoakit.apps.mirror.access_log._lines_cy cimport AccessLog, Response, TargetLabel
from spoakit.metrics._histogram_cy cimport HistogramCells


cdef class RequestSlot(Response):
    cpdef object send(self, OutgoingRequest request)


@cython.final
cdef class RequestQueue:
    cdef public bint calls_for_connections
    cdef Py_ssize_t _max_length
    cdef long long _max_bytes
    cdef bint _drops_newest
    cdef double _max_age
    cdef AccessLog _access_log
    cdef TargetLabel _label
    cdef object _listener
    cdef object _queue
    cdef object _retries
    cdef long long _queue_bytes
    cdef list _idle
    cdef HistogramCells _first_byte
    cdef HistogramCells _response
    cdef list _by_class
    cdef unsigned long long _queue_full
    cdef unsigned long long _too_old
    cdef unsigned long long _responses
    cdef double _last_response_at
    cdef unsigned long long _dropped
    cdef bint _watched

    cpdef object put(self, OutgoingRequest request)
    cpdef object expire(self, double now)
    cpdef OutgoingRequest on_response(
        self, RequestSlot slot, OutgoingRequest request, double now, bint ready
    )
    cdef object _recover(self, double now)
    cdef object _drop(self)
    cdef object _count_drop(self, bint is_newest)
    cdef OutgoingRequest _pop_oldest(self)
