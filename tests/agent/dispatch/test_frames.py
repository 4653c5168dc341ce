"""spoakit.agent._dispatch_cy: frames and their ACKs, together and alone."""

import pytest

from spoakit import Action, Agent, Argument, Message
from spoakit.agent._dispatch_cy import MAX_OUTGOING
from spoakit.agent.runtime import Runtime
from spoakit.exceptions import InvalidFrameError
from spoakit.spop import Aborted, FrameType, encode_frame
from tests.support.agent_frames import EngineLink, notify, raw_notify
from tests.support.dispatching import answered, dispatching, echo, frame


def test_frames_are_answered_together_up_to_an_event_that_is_none(echoing: Agent) -> None:
    def use(runtime: Runtime) -> None:
        link = EngineLink()
        events = [notify(1, echo(7)), notify(2), notify(3, echo(8), echo(9)), Aborted(b""), None]
        assert runtime.dispatcher.dispatch(events, 1, link) == 3
        acks = [(stream, [each.value for each in actions]) for stream, actions in link.acks()]
        assert acks == [(2, []), (3, [8, 9])]

    dispatching(echoing, use)


@pytest.mark.parametrize(
    "payload", [b"\x04echo", b"\x04echo\x01\x01n", b"\x04echo\x01\x01n\x0f", b"\xff", b"\x04ech"]
)
def test_a_frame_that_cannot_be_read_leaves_the_acks_of_those_before(
    echoing: Agent, payload: bytes
) -> None:
    def use(runtime: Runtime) -> None:
        link = EngineLink()
        with pytest.raises(InvalidFrameError):
            runtime.dispatcher.dispatch([notify(1, echo(7)), raw_notify(2, payload)], 0, link)
        assert [stream for stream, _ in link.acks()] == [1]

    dispatching(echoing, use)


def test_frames_like_the_last_one_and_others_are_answered_in_their_order(
    echoing: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    @echoing.message("fail")
    def fail(n: int) -> None:
        raise ValueError(n)

    def use(runtime: Runtime) -> None:
        link = EngineLink()
        sent = [
            echo(0),
            echo(1),
            Message("fail", echo(2).arguments),
            echo(3),
            Message("no"),
            echo(5),
        ]
        events = [notify(stream, message) for stream, message in enumerate(sent)]
        for _ in range(2):
            assert runtime.dispatcher.dispatch(events, 0, link) == 6
            acks = [(stream, [each.value for each in actions]) for stream, actions in link.acks()]
            assert acks == [(0, [0]), (1, [1]), (2, []), (3, [3]), (4, []), (5, [5])]
            link.outgoing.clear()
        assert runtime.dispatcher.frames == 12
        assert runtime.dispatcher.routes[b"echo"][0].calls == 8

    dispatching(echoing, use)


def test_it_stops_where_much_is_to_be_sent(agent: Agent) -> None:
    page = agent.variable("txn.page", bytes)

    @agent.message("page")
    def handle() -> Action:
        return page.set(bytes(16000))

    def use(runtime: Runtime) -> None:
        link = EngineLink()
        events = [notify(1, Message("page"))] * 100
        handled = runtime.dispatcher.dispatch(events, 0, link)
        assert MAX_OUTGOING < len(link.outgoing) < MAX_OUTGOING + 16380
        assert len(link.acks()) == handled
        assert runtime.dispatcher.dispatch(events, 100 - handled, link) > 100 - handled

    dispatching(agent, use)


def test_an_ack_is_as_long_as_agreed_and_no_longer(agent: Agent) -> None:
    page = agent.variable("txn.page", bytes)

    @agent.message("page")
    def handle(size: int) -> Action:
        return page.set(bytes(size))

    def use(runtime: Runtime) -> None:
        link = EngineLink(max_frame_size=256)
        # Type, flags, ids, SET-VAR, its count, scope, name, type and length take 17 bytes.
        for size in (240, 239):
            message = Message("page", (Argument.of("size", size),))
            runtime.dispatcher.dispatch([notify(1, message)], 0, link)
        assert [len(actions) for _, actions in link.acks()] == [0, 1]
        assert runtime.dispatcher.oversized == 1

    dispatching(agent, use)


def test_a_frame_that_came_alone_is_answered_if_it_looks_like_the_last_one(echoing: Agent) -> None:
    def use(runtime: Runtime) -> None:
        dispatcher, link = runtime.dispatcher, EngineLink()
        assert dispatcher.try_single(frame(echo(1)), 0.0, link) is None
        dispatcher.dispatch([notify(1, echo(1))], 0, link)
        assert answered(dispatcher.try_single(frame(echo(2)), 0.0, link)) == [2]
        assert dispatcher.try_single(frame(echo(3), echo(4)), 0.0, link) is None
        assert dispatcher.try_single(frame(Message("other")), 0.0, link) is None
        assert dispatcher.try_single(frame(echo(5)) * 2, 0.0, link) is None
        assert answered(dispatcher.try_single(frame(echo(6)), 0.0, link)) == [6]
        assert dispatcher.frames == 3
        assert dispatcher.routes[b"echo"][0].calls == 3
        assert len(link.acks()) == 1

    dispatching(echoing, use)


def test_a_frame_that_came_alone_and_cannot_be_read_is_left_alone(echoing: Agent) -> None:
    def use(runtime: Runtime) -> None:
        dispatcher, link = runtime.dispatcher, EngineLink()
        dispatcher.dispatch([notify(1, echo(1))], 0, link)
        cut = encode_frame(FrameType.NOTIFY, b"\x04echo\x01\x01n\x04", ids=b"\x07\x01")
        assert dispatcher.try_single(cut, 0.0, link) is None
        assert dispatcher.frames == 1

    dispatching(echoing, use)


def test_the_ack_of_a_frame_that_came_alone_is_as_long_as_agreed(agent: Agent) -> None:
    page = agent.variable("txn.page", bytes)

    @agent.message("page")
    def handle(size: int) -> Action:
        return page.set(bytes(size))

    def use(runtime: Runtime) -> None:
        dispatcher, link = runtime.dispatcher, EngineLink(max_frame_size=256)
        small, fitting, large = (
            Message("page", (Argument.of("size", size),)) for size in (0, 239, 240)
        )
        dispatcher.dispatch([notify(1, small)], 0, link)
        assert answered(dispatcher.try_single(frame(fitting), 0.0, link)) == [bytes(239)]
        assert answered(dispatcher.try_single(frame(large), 0.0, link)) == []
        assert dispatcher.oversized == 1

    dispatching(agent, use)


def test_a_frame_that_came_alone_is_observed_after_its_ack(agent: Agent) -> None:
    seen: list[int] = []

    @agent.observe("see")
    def see(n: int) -> None:
        seen.append(n)

    def use(runtime: Runtime) -> None:
        dispatcher, link = runtime.dispatcher, EngineLink()
        first, second = (Message("see", (Argument.of("n", n),)) for n in (1, 2))
        dispatcher.dispatch([notify(1, first)], 0, link)
        assert answered(dispatcher.try_single(frame(second), 0.0, link)) == []
        assert seen == []

    dispatching(agent, use)
    assert seen == [1, 2]
