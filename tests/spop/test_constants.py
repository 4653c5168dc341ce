"""The numbers are SPOE.txt's; a slip here would be consistent everywhere else."""

from spoakit.exceptions import StatusCode
from spoakit.spop.constants import ActionType, DataType, FrameFlag, FrameType, Scope


def test_frame_types_are_those_of_section_3_2_2() -> None:
    assert [int(kind) for kind in FrameType] == [0, 1, 2, 3, 101, 102, 103]


def test_frame_flags_are_those_of_section_3_2() -> None:
    assert (FrameFlag.FIN, FrameFlag.ABORT) == (1, 2)


def test_data_types_are_those_of_section_3_1_without_a_gap() -> None:
    # The hot modules index a tuple of them by number.
    assert [int(kind) for kind in DataType] == list(range(10))


def test_actions_and_scopes_are_those_of_section_3_4() -> None:
    assert (ActionType.SET_VAR, ActionType.UNSET_VAR) == (1, 2)
    assert [scope.name for scope in sorted(Scope)] == ["PROC", "SESS", "TXN", "REQ", "RES"]
    assert [int(scope) for scope in sorted(Scope)] == [0, 1, 2, 3, 4]


def test_status_codes_are_those_of_section_3_5() -> None:
    assert [int(code) for code in StatusCode] == [*range(14), 99]
