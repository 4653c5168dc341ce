from dataclasses import FrozenInstanceError, dataclass, field

import pytest

from spoakit import Context
from spoakit.agent.context import FrameState


@dataclass
class State:
    users: list[str] = field(default_factory=list)


def test_a_frame_makes_one_object_of_each_type_when_first_asked() -> None:
    frame = FrameState(10.0)
    first = frame.get(State)
    first.users.append("jane")
    assert frame.get(State) is first
    assert frame.get(dict) == {}


def test_frames_share_nothing() -> None:
    assert FrameState(10.0).get(State) is not FrameState(10.0).get(State)


def test_an_object_that_cannot_be_made_is_tried_again() -> None:
    frame = FrameState(10.0)
    answers = iter([False, True])

    def unreliable() -> str:
        if not next(answers):
            raise LookupError
        return "made"

    with pytest.raises(LookupError):
        frame.get(unreliable)
    assert frame.get(unreliable) == "made"


def test_a_context_cannot_be_changed() -> None:
    context = Context("check", None, "192.0.2.1:4000", 1, 1, 10.0)
    assert context.deadline is None
    for attribute in ("message", "deadline"):
        with pytest.raises(FrozenInstanceError):
            setattr(context, attribute, None)
