"""Messages of tests, and the replies to them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from spoakit.spop import Action, Argument, DataType, Message, Value, encode_value

Sendable: TypeAlias = Value | tuple[DataType, Value] | Argument
"""Value of an argument, optionally with its wire type, or a whole `Argument`.

The default wire types are HAProxy's: INT64 for int, STRING for str, BINARY for bytes, NULL for
None, BOOL for bool, IPV4 and IPV6 for addresses.
"""


class Reply(Mapping[str, Value]):
    """Reply to a NOTIFY: the values that its actions set, by "scope.name"; None for unset.

    It equals a dict with the same items. The last of several actions on a variable counts, as in
    HAProxy.

    Attributes:
        actions: the actions in order.
        error: the error of a handler, if it was not raised.
    """

    __slots__ = ("_values", "actions", "error")

    def __init__(self, actions: Iterable[Action], error: BaseException | None = None) -> None:
        self.actions = tuple(actions)
        self.error = error
        self._values: dict[str, Value] = {
            f"{action.scope.name.lower()}.{action.name}": action.value for action in self.actions
        }

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        error = "" if self.error is None else f", error={self.error!r}"
        return f"Reply({self._values!r}{error})"


def make_message(name: str, args: Iterable[Sendable], kwargs: Mapping[str, Sendable]) -> Message:
    """Return a message with unnamed arguments, then named ones.

    Raises:
        TypeError: SPOP has no type for a value, or the value is not of its named type.
        ValueError: a value is out of the range of its type.
    """
    unnamed = [_argument(name, "", value) for value in args]
    named = [_argument(name, key, value) for key, value in kwargs.items()]
    return Message(name, (*unnamed, *named))


def _argument(message: str, name: str, value: Sendable) -> Argument:
    if isinstance(value, Argument):
        argument = replace(value, name=name) if name else value
    elif isinstance(value, tuple):
        argument = Argument(name, *value)
    else:
        try:
            argument = Argument.of(name, value)
        except KeyError:
            raise TypeError(
                f"message {message!r}: argument {name!r} must be a bool, int, str, bytes, "
                f"IPv4Address, IPv6Address or None, got {value!r}"
            ) from None
    # Encode now, so that an error is raised where the call names the argument.
    encode_value(argument.type, argument.value)
    return argument
