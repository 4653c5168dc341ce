# Declarations for other compiled modules, which call this without going through Python.

cdef class HistogramCells:
    cdef double[::1] _cells
    cdef double _scale
    cdef Py_ssize_t _observe(self, double value, Py_ssize_t count) except? -1
