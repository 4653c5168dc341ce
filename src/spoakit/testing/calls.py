"""Messages that a test sends, and the replies to them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from spoakit.spop import Action, Argument, DataType, Message, Value, encode_value

Sendable: TypeAlias = Value | tuple[DataType, Value] | Argument
"""A value sent in the type HAProxy uses for it, one of a type that is named, or a whole argument.

int is INT64, str STRING, bytes BINARY, None NULL; bool and addresses are what they are.
"""


class Reply(Mapping[str, Value]):
    """The answer to a NOTIFY: what its actions set, by "scope.name"; None is unset.

    It equals a dict of the same items. Of two actions on a variable the later counts, as
    in HAProxy.

    Attributes:
        actions: the actions as they came, in their order.
        error: what went wrong, where that is known and has not been raised.
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
        TypeError: a value is of no type that SPOP has, or not of the type named with it.
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
                f"message {message!r}: argument {name!r}: {value!r} is of no type that SPOP has; "
                "these are bool, int, str, bytes, IPv4Address, IPv6Address and None"
            ) from None
    # Said here, where the call names the argument.
    encode_value(argument.type, argument.value)
    return argument
