from typing import Any

import pytest

from spoakit.exceptions import InvalidFrameError
from spoakit.spop import VariableEncoder
from spoakit.spop.actions import decode_actions
from spoakit.spop.constants import DataType, Scope
from tests.support.spop_values import VALUES


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize(("kind", "value", "encoded"), VALUES)
def test_set_var_is_read_in_every_scope_and_type(
    scope: Scope, kind: DataType, value: Any, encoded: str
) -> None:
    payload = b"\x01\x03" + bytes((scope,)) + b"\x04name" + bytes.fromhex(encoded)
    assert decode_actions(payload) == [VariableEncoder(scope, "name", kind).set(value)]


@pytest.mark.parametrize("scope", Scope)
def test_unset_var_is_read_in_every_scope(scope: Scope) -> None:
    payload = b"\x02\x02" + bytes((scope,)) + b"\x04name"
    assert decode_actions(payload) == [VariableEncoder(scope, "name", DataType.BOOL).set(None)]


def test_actions_keep_their_order() -> None:
    payload = bytes.fromhex("010302017811 0202020178 010302017801")
    assert [action.value for action in decode_actions(payload)] == [True, None, False]
    assert decode_actions(b"") == []


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x00\x03\x00\x01x\x11", "unknown action 0"),
        (b"\x03\x03\x00\x01x\x11", "unknown action 3"),
        (b"\x01\x02\x00\x01x", "unknown action 1 with 2 arguments"),
        (b"\x02\x03\x00\x01x\x11", "unknown action 2 with 3 arguments"),
        (b"\x01\x03\x05\x01x\x11", "unknown scope 5"),
        (b"\x01\x03\x00\x00\x11", "must have 1 to 63 bytes"),
        (b"\x01\x03\x00\x40" + b"x" * 64 + b"\x11", "must have 1 to 63 bytes"),
        (b"\x01\x03\x00\x01x\x0a", "unknown data type"),
        # An INT32 of 2**62.
        (b"\x01\x03\x00\x01x\x02" + bytes.fromhex("f0f1fefefefefefefe02"), "out of the range"),
    ],
)
def test_what_is_no_action_is_invalid(payload: bytes, reason: str) -> None:
    with pytest.raises(InvalidFrameError, match=reason):
        decode_actions(payload)


def test_an_action_cut_short_is_invalid() -> None:
    for payload in (b"\x01\x03\x01\x04name\x08\x03abc", b"\x02\x02\x01\x04name"):
        for size in range(1, len(payload)):
            with pytest.raises(InvalidFrameError):
                decode_actions(payload[:size])
