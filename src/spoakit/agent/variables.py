"""Variables that an agent sets in HAProxy."""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Generic, TypeVar

from spoakit.agent.parameters import IPAddress, is_hashable
from spoakit.exceptions import RegistrationError
from spoakit.spop._decode_cy import Value
from spoakit.spop._encode_cy import Action, VariableEncoder
from spoakit.spop.constants import MAX_VARIABLE_NAME, DataType, Scope

T = TypeVar("T", bound=bool | int | str | bytes | IPv4Address | IPv6Address)

VARIABLE_TYPES: Final[dict[object, DataType]] = {
    bool: DataType.BOOL,
    int: DataType.INT64,
    str: DataType.STRING,
    bytes: DataType.BINARY,
    IPv4Address: DataType.IPV4,
    IPv6Address: DataType.IPV6,
}
"""Wire types of variables by Python type; IPAddress is handled apart."""

_SCOPES: Final = {scope.name.lower(): scope for scope in Scope}
# Names of variables, and values of var-prefix, that HAProxy accepts (SPOE.txt 2.2).
NAME: Final = re.compile(r"[A-Za-z0-9_.]+")


class Variable(Generic[T]):
    """Variable of HAProxy that an agent sets; `Agent.variable` creates them.

    Attributes:
        scope: its scope.
        name: its name in ACK frames: without scope, and without the prefix that HAProxy adds.
        full_name: its name in HAProxy's configuration, "txn.auth.user".
        set: returns the action that sets the variable to a value; None unsets the variable.
            Raises TypeError for a value of another type, ValueError for an integer out of
            the type's range.
    """

    __slots__ = ("full_name", "name", "scope", "set")

    scope: Scope
    name: str
    full_name: str
    # The encoder's own method, so that a call from a handler runs compiled code only.
    set: Callable[[T | None], Action]

    def __init__(self, name: str, data_type: object, prefix: str) -> None:
        if not isinstance(name, str):
            raise RegistrationError(f"variable {name!r}: a name must be a str")
        scope, _, self.name = name.partition(".")
        if scope not in _SCOPES or not NAME.fullmatch(self.name):
            raise RegistrationError(
                f"variable {name!r}: a name is a scope ({', '.join(_SCOPES)}), a dot, and "
                "letters, digits, _ and . of ASCII"
            )
        if self.name.startswith(f"{prefix}."):
            raise RegistrationError(f"variable {name!r}: leave out the prefix, HAProxy adds it")
        self.scope = _SCOPES[scope]
        self.full_name = f"{scope}.{prefix}.{self.name}"
        if len(self.full_name) > MAX_VARIABLE_NAME:
            raise RegistrationError(
                f"variable {name!r}: {self.full_name!r} must have at most "
                f"{MAX_VARIABLE_NAME} bytes, got {len(self.full_name)}"
            )
        try:
            self.set = _setter(self.scope, self.name, data_type)
        except RegistrationError as error:
            raise RegistrationError(f"variable {name!r}: {error}") from error

    def __repr__(self) -> str:
        return f"<Variable {self.full_name}>"


def _setter(scope: Scope, name: str, data_type: object) -> Callable[[Value], Action]:
    if data_type == IPAddress:
        ipv4 = VariableEncoder(scope, name, DataType.IPV4)
        ipv6 = VariableEncoder(scope, name, DataType.IPV6)
        return lambda value: (ipv6 if isinstance(value, IPv6Address) else ipv4).set(value)
    if not isinstance(data_type, DataType):
        if not is_hashable(data_type) or data_type not in VARIABLE_TYPES:
            raise RegistrationError(
                f"the type must be bool, int, str, bytes, IPv4Address, IPv6Address, IPAddress or a "
                f"DataType, got {data_type!r}"
            )
        data_type = VARIABLE_TYPES[data_type]
    if data_type is DataType.NULL:
        raise RegistrationError("the type must not be NULL; set(None) unsets a variable")
    return VariableEncoder(scope, name, data_type).set
