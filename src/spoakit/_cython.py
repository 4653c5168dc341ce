"""What the hot modules need of ``cython`` where Cython is not installed: names that do nothing.

The hot modules (``*_cy.py``) are Cython in pure Python mode: one source, which runs
as it is and compiles to C. Compiled, ``cython`` means Cython's own module;
uncompiled, this one, and its types are plain ``int`` and ``bool``.
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
    """Return the value; compiled, the variable or attribute it is assigned to is one of C's.

    An attribute's visibility is "private" to the compiled module, "readonly" or "public".
    """
    return value


def cast(kind: Callable[[Any], T], value: object) -> T:
    """Return the value as another type; compiled, C's conversion, which checks nothing."""
    return kind(value)


def address(value: object) -> Any:
    """Return the value; compiled, C's pointer to it."""
    return value


def memcpy(into: object, source: object, size: int) -> object:
    """Copy bytes; C's function, of which uncompiled code has slices."""
    raise NotImplementedError("for compiled code only")


def memcmp(one: object, other: object, size: int) -> int:
    """Compare bytes, and return 0 if they are the same; C's function, as above."""
    raise NotImplementedError("for compiled code only")


def cclass(decorated: T) -> T:
    """Return the class as it is; compiled, it becomes an extension type."""
    return decorated


def cfunc(decorated: T) -> T:
    """Return the function as it is; compiled, it becomes a C function."""
    return decorated


def ccall(decorated: T) -> T:
    """Return the function as it is; compiled, it becomes a C function that Python can call, too."""
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
