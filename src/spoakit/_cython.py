"""Substitute for ``cython`` where Cython is not installed: types and decorators without effect.

The hot modules (``*_cy.py``) are written in Cython's pure Python mode: one source, which runs as
it is and compiles to C. In compiled modules ``cython`` is Cython's own module. In uncompiled ones
it is this module, whose types are plain ``int`` and ``bool``.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, overload

T = TypeVar("T")

compiled: bool = False

Py_ssize_t: TypeAlias = int
uchar: TypeAlias = int
uint: TypeAlias = int
longlong: TypeAlias = int
ulonglong: TypeAlias = int
bint: TypeAlias = bool
double: TypeAlias = float
p_char: TypeAlias = bytes


@overload
def declare(kind: str) -> Any: ...
@overload
def declare(kind: object, value: T) -> T: ...
@overload
def declare(kind: type[T], *, visibility: str) -> T: ...
def declare(kind: object, value: object = None, *, visibility: str = "private") -> object:
    """Return the value; compiled, it declares a C variable or attribute.

    An attribute's visibility is "private" to the compiled module, "readonly" or "public".
    """
    return value


def cast(kind: Callable[[Any], T], value: object) -> T:
    """Convert the value to another type; compiled, C's unchecked conversion."""
    return kind(value)


def address(value: object) -> Any:
    """Return the value; compiled, a C pointer to it."""
    return value


def memcpy(into: object, source: object, size: int) -> object:
    """Copy bytes with C's function; uncompiled code uses slices instead."""
    raise NotImplementedError("for compiled code only")


def memcmp(one: object, other: object, size: int) -> int:
    """Compare bytes with C's function; uncompiled code uses slices instead."""
    raise NotImplementedError("for compiled code only")


def cclass(decorated: T) -> T:
    """Return the class as it is; compiled, it becomes an extension type."""
    return decorated


def cfunc(decorated: T) -> T:
    """Return the function as it is; compiled, it becomes a C function."""
    return decorated


def ccall(decorated: T) -> T:
    """Return the function as it is; compiled, it becomes a C function that Python can call too."""
    return decorated


def final(decorated: T) -> T:
    """Return the class as it is; compiled, it cannot be subclassed."""
    return decorated


def inline(decorated: T) -> T:
    """Return the function as it is; compiled, the C compiler is asked to inline it."""
    return decorated


def exceptval(value: Any = None, *, check: bool = True) -> Callable[[T], T]:
    """Return a decorator that changes nothing; compiled, ``value`` announces an exception."""
    return _unchanged


def freelist(size: int) -> Callable[[T], T]:
    """Return a decorator that changes nothing; compiled, ``size`` instances are kept for reuse."""
    return _unchanged


def _unchanged(decorated: T) -> T:
    return decorated
