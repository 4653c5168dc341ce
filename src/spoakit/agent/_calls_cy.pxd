# Declarations for other compiled modules, which use calls without going through Python.
cimport cython


@cython.final
cdef class PendingCall:
    cdef readonly object bound
    cdef readonly object result
    cdef readonly bint has_ended
    cdef public object frame
    cdef public object task
    cdef public EndedCalls ended
    cdef double _deadline

    cdef object pop_result(self)


@cython.final
cdef class EndedCalls:
    cdef object _loop
    cdef object _context
    cdef object _resume
    cdef list _calls

    cdef object _add(self, PendingCall call)
