"""Parameters of handlers and resources: their signatures, parsed at registration.

A parameter is an argument of the message if its annotation is one of `ARGUMENT_TYPES`, with or
without ``| None``. The values of `Context`, `Message` and `PerFrame` come from the frame, the value
of `MaxFrameSize` from its connection. Any other annotation is the type of a resource.
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
    # HAProxy may send an address as text, for instance from a header; the handler parses it.
    IPAddress | str: (frozenset({DataType.IPV4, DataType.IPV6, DataType.STRING}), Reading.VALUE),
    str: (_STRINGS, Reading.TEXT),
    bytes: (_STRINGS, Reading.BYTES),
    Headers: (_STRINGS, Reading.WRAPPED),
}
"""Wire types that each annotation accepts, and how their values are read."""

ALLOWED: Final = (
    "int, bool, str, bytes, IPv4Address, IPv6Address, IPAddress, IPAddress | str or Headers, each "
    "also with | None; Context, Message, MaxFrameSize, PerFrame[...]; or the type of a resource of "
    "the agent"
)

# A message has at most this many arguments (NB-ARGS is one byte), and plans index them by bytes.
_MAX_PARAMETERS: Final = 255

# Argument names that need no quotes in the args of a spoe-message.
_ARGUMENT_NAME: Final = re.compile(r"""[^\s="'\\#\x00-\x1f\x7f]+""")


@dataclass(frozen=True, slots=True)
class Fetch:
    """Source of an argument in HAProxy: ``Annotated[str, Fetch("req.hdr(host)")]``.

    Args:
        expression: a sample expression of HAProxy with its converters, for the args of
            the spoe-message.
        name: the argument's name on the wire, if it differs from the parameter's. Then
            no other name matches.

    Raises:
        RegistrationError: the expression or the name is not valid in a configuration.
    """

    expression: str
    name: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        text = self.expression
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise RegistrationError(
                f"Fetch({self.expression!r}): must be a sample expression in one line"
            )
        if self.name is not None and not (
            isinstance(self.name, str) and _ARGUMENT_NAME.fullmatch(self.name)
        ):
            raise RegistrationError(
                f"Fetch(name={self.name!r}): must not contain spaces or = # \" ' \\"
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
    """Parameter of a handler.

    Attributes:
        name: its name in Python.
        kind: before ``/``, ordinary, or after ``*``.
        role: the origin of its value.
        annotation: its type, without Annotated and None. For PER_FRAME the factory of the
            frame's object, for RESOURCE the resource's type.
        accepts: the wire types of an ARGUMENT besides NULL; empty for other roles.
        reading: the Python value to make of an ARGUMENT.
        optional: True if the annotation allows None.
        default: the default, or REQUIRED.
        fetch: the sample expression of the argument, if it is declared.
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
        """Name of the argument on the wire, unless it is bound by position or by `identifier`."""
        return self.fetch.name if self.fetch and self.fetch.name else self.name

    @property
    def when_absent(self) -> Any:
        """Value if the argument is NULL or absent: default, None or REQUIRED."""
        if self.default is REQUIRED and self.optional:
            return None
        return self.default


def describe(function: Callable[..., Any]) -> str:
    """Return a function's name for errors and logs: "module.qualified_name"."""
    # Methods of types written in C have no module.
    module = getattr(function, "__module__", None) or "builtins"
    return f"{module}.{getattr(function, '__qualname__', repr(function))}"


def resolve(function: Callable[..., Any], annotation: object) -> Any:
    """Return an annotation as a type; evaluate it if it is text.

    Raises:
        RegistrationError: the annotation uses names that the function's module does not define.
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


def parse_parameters(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return the parameters of a handler or a resource, in order.

    Raises:
        RegistrationError: nothing can fill a parameter; the text names the function and the
            parameter.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError, NameError) as error:
        raise RegistrationError(f"{describe(function)}: it has no signature: {error}") from error
    parameters = []
    for found in signature.parameters.values():
        try:
            parameters.append(_parse_parameter(function, found))
        except RegistrationError as error:
            raise RegistrationError(
                f"{describe(function)}: parameter {found.name!r}: {error}"
            ) from error
    if len(parameters) > _MAX_PARAMETERS:
        raise RegistrationError(
            f"{describe(function)}: must have at most {_MAX_PARAMETERS} parameters, "
            f"got {len(parameters)}"
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
                f"{describe(function)}: parameters {other!r} and {parameter.name!r} have the same "
                f"name on the wire, {parameter.wire_name!r}"
            )


def _parse_parameter(function: Callable[..., Any], found: inspect.Parameter) -> Parameter:
    if found.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise RegistrationError("name each argument; a parameter of type Message has them all")
    if found.annotation is found.empty:
        raise RegistrationError(f"it has no annotation; allowed are {ALLOWED}")
    annotation, optional, extras = _strip(resolve(function, found.annotation))
    if not is_hashable(annotation):
        raise RegistrationError(f"{annotation!r} is not a type; allowed are {ALLOWED}")
    role = find_role(annotation, extras)
    if role is None:
        raise RegistrationError(f"{annotation} is not allowed; allowed are {ALLOWED}")
    if role is Role.PER_FRAME:
        _check_factory(annotation)
    fetches = [extra for extra in extras if isinstance(extra, Fetch)]
    if len(fetches) > 1:
        raise RegistrationError("it has more than one Fetch")
    if role is not Role.ARGUMENT and fetches:
        raise RegistrationError("Fetch is for arguments of the message only")
    if role is not Role.ARGUMENT and optional:
        name = role.value if role is Role.MAX_FRAME_SIZE else _name(annotation)
        raise RegistrationError(f"{name} is never None; leave out | None")
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


def find_role(annotation: Any, extras: Sequence[object] = ()) -> Role | None:
    """Return the role of a parameter by its type; None for a union that is not an argument."""
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
        raise RegistrationError(f"PerFrame[{_name(annotation)}]: must be a class")
    try:
        inspect.signature(annotation).bind()
    except ValueError:
        pass  # a class written in C without a signature
    except TypeError as error:
        raise RegistrationError(
            f"PerFrame[{_name(annotation)}]: the class must need no arguments: {error}"
        ) from error


def _strip(annotation: Any) -> tuple[Any, bool, tuple[object, ...]]:
    """Return a type without Annotated and None, whether it allowed None, and its extras."""
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
        # typing.Union and | become one form, which is a key of ARGUMENT_TYPES.
        return reduce(operator.or_, members), optional, ()
    return annotation, False, ()


def is_hashable(value: object) -> bool:
    """Return whether a value has a hash; Literal[[]] has the method, but it raises."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)
