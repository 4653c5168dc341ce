"""A handler's signature, read once: where each parameter's value comes from.

A parameter is an argument of the message if its annotation is one of `ARGUMENT_TYPES`,
with or without ``| None``. `Context`, `Message` and `PerFrame` come from the frame,
`MaxFrameSize` from its connection; any other annotation names a resource by its type.
"""

import inspect
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce
from ipaddress import IPv4Address, IPv6Address
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Final, TypeAlias, Union, get_args, get_origin, get_type_hints

from spoakit.agent.context import Context, MaxFrameSizeMarker, PerFrameMarker
from spoakit.agent.headers import Headers
from spoakit.exceptions import RegistrationError
from spoakit.spop._decode_cy import Reading
from spoakit.spop.constants import DataType
from spoakit.spop.messages import Message

IPAddress: TypeAlias = IPv4Address | IPv6Address
"""Type of a parameter or a variable that is an address of either family."""

REQUIRED: Final = inspect.Parameter.empty
"""Value of `Parameter.when_absent` if the handler cannot be called without the argument."""

_INTEGERS = frozenset({DataType.INT32, DataType.UINT32, DataType.INT64, DataType.UINT64})
_STRINGS = frozenset({DataType.STRING, DataType.BINARY})

ARGUMENT_TYPES: Final[dict[object, tuple[frozenset[DataType], Reading]]] = {
    int: (_INTEGERS, Reading.VALUE),
    bool: (frozenset({DataType.BOOL}), Reading.VALUE),
    IPv4Address: (frozenset({DataType.IPV4}), Reading.VALUE),
    IPv6Address: (frozenset({DataType.IPV6}), Reading.VALUE),
    IPAddress: (frozenset({DataType.IPV4, DataType.IPV6}), Reading.VALUE),
    # An address that may come as text, out of a header for instance, which the handler parses.
    IPAddress | str: (frozenset({DataType.IPV4, DataType.IPV6, DataType.STRING}), Reading.VALUE),
    str: (_STRINGS, Reading.TEXT),
    bytes: (_STRINGS, Reading.BYTES),
    Headers: (_STRINGS, Reading.WRAPPED),
}
"""The annotations of arguments: the wire types each accepts, and how these are read."""

ALLOWED: Final = (
    "int, bool, str, bytes, IPv4Address, IPv6Address, IPAddress, IPAddress | str or Headers, each "
    "also with | None; Context, Message, MaxFrameSize, PerFrame[...]; or the type of a resource of "
    "the agent"
)

# A NOTIFY's message has at most this many arguments, and plans number them in a byte.
_MAX_PARAMETERS: Final = 255

# What can stand before the = in a spoe-message's args without quotes.
_ARGUMENT_NAME: Final = re.compile(r"""[^\s="'\\#\x00-\x1f\x7f]+""")


@dataclass(frozen=True, slots=True)
class Fetch:
    """Source of an argument in HAProxy: ``Annotated[str, Fetch("req.hdr(host)")]``.

    Args:
        expression: a sample expression of HAProxy, converters included, for the
            spoe-message's args.
        name: the argument's name on the wire, where it is not the parameter's; no other
            name matches then.

    Raises:
        RegistrationError: the expression or the name cannot stand in a configuration.
    """

    expression: str
    name: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        text = self.expression
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise RegistrationError(f"Fetch({self.expression!r}): this is not a sample expression")
        if self.name is not None and not (
            isinstance(self.name, str) and _ARGUMENT_NAME.fullmatch(self.name)
        ):
            raise RegistrationError(
                f"Fetch(name={self.name!r}): a name has no space and none of = # \" ' \\"
            )


class ParameterKind(Enum):
    """Way in which a parameter is matched with the arguments of a message."""

    POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY
    ORDINARY = inspect.Parameter.POSITIONAL_OR_KEYWORD
    KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


class Role(Enum):
    """Origin of a parameter's value."""

    ARGUMENT = "argument"
    CONTEXT = "Context"
    MESSAGE = "Message"
    MAX_FRAME_SIZE = "MaxFrameSize"
    PER_FRAME = "PerFrame"
    RESOURCE = "resource"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a handler.

    Attributes:
        name: its name in Python.
        kind: before ``/``, ordinary, or after ``*``.
        role: where its value comes from.
        annotation: its type, without Annotated and None. For PER_FRAME what makes the
            frame's object, for RESOURCE the resource's type.
        accepts: the wire types an ARGUMENT takes, NULL aside; empty for the other roles.
        reading: how an ARGUMENT is read.
        optional: whether the annotation allows None.
        default: the default, or REQUIRED.
        fetch: where HAProxy takes the argument from, if that is said.
    """

    name: str
    kind: ParameterKind
    role: Role
    annotation: Any
    accepts: frozenset[DataType] = frozenset()
    reading: Reading = Reading.SKIP
    optional: bool = False
    default: Any = REQUIRED
    fetch: Fetch | None = None

    @property
    def wire_name(self) -> str:
        """The argument's name on the wire, unless it is matched by position or mangled."""
        return self.fetch.name if self.fetch and self.fetch.name else self.name

    @property
    def when_absent(self) -> Any:
        """The value where the argument is NULL or absent: default, None or REQUIRED."""
        if self.default is REQUIRED and self.optional:
            return None
        return self.default


def describe(function: Callable[..., Any]) -> str:
    """Return how errors and logs name a handler: "module.qualified_name"."""
    # Methods of types written in C have no module.
    module = getattr(function, "__module__", None) or "builtins"
    return f"{module}.{getattr(function, '__qualname__', repr(function))}"


def resolve(function: Callable[..., Any], annotation: object) -> Any:
    """Return an annotation of a function as a type, evaluated if it is text.

    Raises:
        RegistrationError: it cannot be evaluated with the names of the function's module.
    """
    holder = SimpleNamespace(__annotations__={"it": annotation})
    try:
        names = getattr(inspect.unwrap(function), "__globals__", {})
        return get_type_hints(holder, names, include_extras=True)["it"]
    except Exception as error:  # whatever the expression raises
        raise RegistrationError(
            f"the annotation {annotation!r} cannot be evaluated ({error}); it may use what "
            "its module defines when the decorator runs, not names of TYPE_CHECKING blocks "
            "or of functions"
        ) from error


def read_parameters(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return the parameters of a handler or a resource in their order.

    Raises:
        RegistrationError: a parameter cannot be filled; it names the function and the parameter.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError, NameError) as error:
        raise RegistrationError(f"{describe(function)}: no signature to read: {error}") from error
    parameters = []
    for found in signature.parameters.values():
        try:
            parameters.append(_read_parameter(function, found))
        except RegistrationError as error:
            raise RegistrationError(
                f"{describe(function)}: parameter {found.name!r}: {error}"
            ) from error
    if len(parameters) > _MAX_PARAMETERS:
        raise RegistrationError(
            f"{describe(function)}: {len(parameters)} parameters, {_MAX_PARAMETERS} are allowed"
        )
    _check_wire_names(function, parameters)
    return tuple(parameters)


def _check_wire_names(function: Callable[..., Any], parameters: Iterable[Parameter]) -> None:
    known: dict[str, str] = {}
    for parameter in parameters:
        if parameter.role is not Role.ARGUMENT or parameter.kind is ParameterKind.POSITIONAL_ONLY:
            continue
        other = known.setdefault(parameter.wire_name, parameter.name)
        if other != parameter.name:
            raise RegistrationError(
                f"{describe(function)}: parameters {other!r} and {parameter.name!r} are both "
                f"called {parameter.wire_name!r} on the wire"
            )


def _read_parameter(function: Callable[..., Any], found: inspect.Parameter) -> Parameter:
    if found.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise RegistrationError("name each argument; the parameter Message has them all")
    if found.annotation is found.empty:
        raise RegistrationError(f"it has no annotation; allowed are {ALLOWED}")
    annotation, optional, extras = _strip(resolve(function, found.annotation))
    if not is_hashable(annotation):
        raise RegistrationError(f"{annotation!r} is not a type; allowed are {ALLOWED}")
    role = role_of(annotation, extras)
    if role is None:
        raise RegistrationError(f"{annotation} is none of what is allowed: {ALLOWED}")
    if role is Role.PER_FRAME:
        _check_factory(annotation)
    fetches = [extra for extra in extras if isinstance(extra, Fetch)]
    if len(fetches) > 1:
        raise RegistrationError("it has more than one Fetch")
    if role is not Role.ARGUMENT and fetches:
        raise RegistrationError("Fetch is for arguments, and this is none")
    if role is not Role.ARGUMENT and optional:
        name = role.value if role is Role.MAX_FRAME_SIZE else _name(annotation)
        raise RegistrationError(f"{name} is always there: leave | None out")
    accepts, reading = frozenset[DataType](), Reading.SKIP
    if role is Role.ARGUMENT:
        accepts, reading = ARGUMENT_TYPES[annotation]
    return Parameter(
        name=found.name,
        kind=ParameterKind(found.kind),
        role=role,
        annotation=annotation,
        accepts=accepts,
        reading=reading,
        optional=optional,
        default=found.default,
        fetch=fetches[0] if fetches else None,
    )


def role_of(annotation: Any, extras: Sequence[object] = ()) -> Role | None:
    """Return what a parameter of this type is for; None for a union, which is nothing's type."""
    if any(isinstance(extra, PerFrameMarker) for extra in extras):
        return Role.PER_FRAME
    if any(isinstance(extra, MaxFrameSizeMarker) for extra in extras):
        return Role.MAX_FRAME_SIZE
    if annotation in ARGUMENT_TYPES:
        return Role.ARGUMENT
    if annotation is Context:
        return Role.CONTEXT
    if annotation is Message:
        return Role.MESSAGE
    return None if isinstance(annotation, UnionType) else Role.RESOURCE


def _check_factory(annotation: Any) -> None:
    """Refuse a PerFrame type that cannot be made without arguments."""
    if not callable(annotation):
        raise RegistrationError(f"PerFrame[{_name(annotation)}]: this is not a class")
    try:
        inspect.signature(annotation).bind()
    except ValueError:
        pass  # a class written in C that does not tell
    except TypeError as error:
        raise RegistrationError(
            f"PerFrame[{_name(annotation)}]: {_name(annotation)}() has to work: {error}"
        ) from error


def _strip(annotation: Any) -> tuple[Any, bool, tuple[object, ...]]:
    """Take Annotated and None off a type; return it, whether None was there, the extras."""
    if get_origin(annotation) is Annotated:
        inner, *outside = get_args(annotation)
        stripped, optional, inside = _strip(inner)
        return stripped, optional, (*outside, *inside)
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        optional = len(members) < len(get_args(annotation))
        if len(members) == 1:
            stripped, _, inside = _strip(members[0])
            return stripped, optional, inside
        # typing.Union and | become one form, which ARGUMENT_TYPES can be asked for.
        return reduce(operator.or_, members), optional, ()
    return annotation, False, ()


def is_hashable(value: object) -> bool:
    """Return whether a value has a hash: Literal[[]] has the method, which fails."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)
