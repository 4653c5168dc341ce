# What other compiled modules use of requests without going through Python.
cimport cython


@cython.final
cdef class IncomingRequest:
    cdef readonly bytes method
    cdef readonly bytes target
    cdef readonly bytes version
    cdef readonly object headers
    cdef readonly bytes body
    cdef readonly bint has_body
    cdef readonly long long size
    cdef readonly bytes source
    cdef readonly bytes request_id
    cdef readonly bytes key
    cdef readonly Py_ssize_t max_frame_size
    cdef readonly bint is_http2


@cython.final
cdef class OutgoingRequest:
    cdef readonly bytes wire
    cdef readonly Py_ssize_t head_size
    cdef readonly Py_ssize_t method_size
    cdef readonly Py_ssize_t target_size
    cdef readonly long long missing
    cdef readonly bint retried
    cdef readonly str suspect
    cdef public double waiting_since


cpdef OutgoingRequest new_request(
    bytes head,
    bytes body,
    Py_ssize_t method_size,
    Py_ssize_t target_size,
    long long missing,
    str suspect,
)
