"""Decoder for the actions of an ACK (SPOE.txt 3.4), for the engine's side."""

from spoakit.exceptions import InvalidFrameError
from spoakit.spop._decode_cy import Cursor
from spoakit.spop._encode_cy import Action, VariableEncoder
from spoakit.spop.constants import ActionType, DataType, Scope

# ACTION-TYPE and NB-ARGS of the two actions that exist.
_SET = (ActionType.SET_VAR, 3)
_UNSET = (ActionType.UNSET_VAR, 2)


def decode_actions(payload: bytes) -> list[Action]:
    """Decode the payload of an ACK.

    Raises:
        InvalidFrameError: the payload is not a list of actions.
    """
    cursor = Cursor(payload, 0, len(payload))
    actions = []
    while not cursor.at_end():
        actions.append(_decode_action(cursor))
    return actions


def _decode_action(cursor: Cursor) -> Action:
    kind, count = cursor.byte(), cursor.byte()
    if (kind, count) not in (_SET, _UNSET):
        raise InvalidFrameError(f"unknown action {kind} with {count} arguments")
    scope = cursor.byte()
    if scope > Scope.RES:
        raise InvalidFrameError(f"unknown scope {scope} of a variable")
    name = cursor.string().decode("utf-8", "surrogateescape")
    data_type, value = cursor.value() if kind == ActionType.SET_VAR else (DataType.NULL, None)
    try:
        return VariableEncoder(Scope(scope), name, data_type).set(value)
    except ValueError as error:
        raise InvalidFrameError(str(error)) from error
