# What other compiled modules call without going through Python.
cimport cython


@cython.final
cdef class Buffer:
    cdef bytearray _room
    cdef readonly Py_ssize_t size

    cpdef Py_ssize_t add(self, bytes data) except -1
    cpdef Py_ssize_t add_part(self, bytes data, Py_ssize_t start, Py_ssize_t end) except -1
    cpdef Py_ssize_t add_number(self, unsigned long long number, Py_ssize_t width=*) except -1
    cpdef Py_ssize_t insert(self, Py_ssize_t at, bytes data) except -1
    cpdef bytes copy(self, Py_ssize_t start=*)
    cpdef Py_ssize_t truncate(self, Py_ssize_t size) except -1
