from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoakit import Context, Fetch, Headers, IPAddress, Message
from spoakit.agent.handlers import (
    Binding,
    Handler,
    HandlerKind,
    ParameterSource,
    Shape,
    Trigger,
    bind_arguments,
    identifier,
)
from spoakit.agent.parameters import (
    REQUIRED,
    Parameter,
    ParameterKind,
    Role,
    describe,
    parse_parameters,
)
from spoakit.exceptions import RegistrationError
from spoakit.spop.constants import DataType

IPV4, INT, STR, BIN, NULL = (
    DataType.IPV4,
    DataType.INT64,
    DataType.STRING,
    DataType.BINARY,
    DataType.NULL,
)


def bind(function: Callable[..., Any], *shape: tuple[str, DataType]) -> Binding:
    """Match arguments, their names as text, with a function's parameters."""
    handler = Handler(
        "agent",
        "message",
        describe(function),
        function,
        HandlerKind.INLINE,
        parse_parameters(function),
    )
    return bind_arguments(handler, [(name.encode(), kind) for name, kind in shape])


def sources(binding: Binding) -> list[object]:
    """Return each slot's index on the wire, or the value it has without one as a tuple."""
    assert binding.mismatch is None
    return [(slot.value,) if slot.index is None else slot.index for slot in binding.slots]


def test_parameters_before_the_slash_go_by_position_whatever_the_names() -> None:
    def handler(a: IPAddress, b: str, /) -> None: ...

    assert sources(bind(handler, ("b", IPV4), ("a", STR))) == [0, 1]
    assert sources(bind(handler, ("", IPV4), ("", STR))) == [0, 1]


def test_ordinary_parameters_go_by_name_in_any_order() -> None:
    def handler(a: int, b: str) -> None: ...

    assert sources(bind(handler, ("b", STR), ("a", INT))) == [1, 0]


def test_ordinary_parameters_without_a_named_argument_take_the_unnamed_in_order() -> None:
    def handler(a: int, b: str, c: bytes) -> None: ...

    assert sources(bind(handler, ("", INT), ("b", STR), ("", BIN))) == [0, 1, 2]
    assert sources(bind(handler, ("", STR), ("", BIN), ("a", INT))) == [2, 0, 1]


def test_parameters_after_the_star_go_by_name_only() -> None:
    def handler(*, a: int = 3) -> None: ...

    binding = bind(handler, ("", INT))
    assert sources(binding) == [(3,)]
    assert binding.extra == (b"",)


def test_parameters_by_position_leave_the_rest_to_the_others() -> None:
    def handler(a: int, /, a_name: int, *, key: int) -> None: ...

    assert sources(bind(handler, ("key", INT), ("key", INT), ("", INT))) == [0, 2, 1]


def test_names_that_are_no_identifiers_are_matched_with_underscores() -> None:
    def handler(user_agent: str, class_: str) -> None: ...

    assert sources(bind(handler, ("class", STR), ("user-agent", STR))) == [1, 0]


def test_an_exact_name_comes_before_one_that_had_to_change() -> None:
    def handler(x_id: str) -> None: ...

    binding = bind(handler, ("x-id", STR), ("x_id", STR))
    assert sources(binding) == [1]
    assert binding.extra == (b"x-id",)


def test_the_name_of_a_fetch_is_the_only_one_that_matches() -> None:
    def handler(x_id: Annotated[str | None, Fetch("req.hdr(x-id)", name="id")]) -> None: ...

    assert sources(bind(handler, ("x_id", STR), ("id", STR))) == [1]
    assert sources(bind(handler, ("x_id", STR), ("x-id", STR))) == [(None,)]
    assert sources(bind(handler, ("", STR))) == [0]


def test_of_repeated_arguments_the_first_wins() -> None:
    def handler(a: int) -> None: ...

    binding = bind(handler, ("a", INT), ("a", STR))
    assert sources(binding) == [0]
    assert binding.extra == (b"a",)


def test_arguments_that_no_parameter_takes_are_extra() -> None:
    def handler(a: int, /) -> None: ...

    assert bind(handler, ("a", INT), ("b", INT), ("", INT)).extra == (b"b", b"")


@pytest.mark.parametrize("shape", [(), (("a", NULL),)])
def test_null_and_absent_are_the_default_then_none_then_a_mismatch(
    shape: tuple[tuple[str, DataType], ...],
) -> None:
    def default(a: int | None = 3) -> None: ...
    def optional(a: int | None) -> None: ...
    def required(a: int) -> None: ...

    assert sources(bind(default, *shape)) == [(3,)]
    assert sources(bind(optional, *shape)) == [(None,)]
    assert bind(required, *shape).mismatch == f"argument 'a' is {'NULL' if shape else 'missing'}"


def test_another_type_is_a_mismatch_even_where_there_is_a_default() -> None:
    def handler(a: IPAddress | None = None) -> None: ...

    binding = bind(handler, ("a", STR))
    assert binding.mismatch == "argument 'a' must be IPV4 or IPV6, got STRING"
    assert binding.slots == ()


@pytest.mark.parametrize(
    ("annotation", "other"), [(bool, INT), (int, DataType.BOOL), (str, IPV4), (Headers, INT)]
)
def test_nothing_is_converted_to_another_type(annotation: object, other: DataType) -> None:
    def handler(a: Any) -> None: ...

    handler.__annotations__["a"] = annotation
    assert bind(handler, ("a", other)).mismatch is not None


def test_parameters_that_are_no_arguments_take_none() -> None:
    class Redis: ...

    def handler(context: Context, src: IPv4Address, /, redis: Redis, message: Message) -> None: ...

    binding = bind(handler, ("redis", IPV4))
    assert sources(binding) == [(None,), 0, (None,), (None,)]
    assert binding.extra == ()


def test_a_name_that_is_not_utf_8_is_extra() -> None:
    def handler(a: int = 0) -> None: ...

    parameters = parse_parameters(handler)
    bound = Handler("agent", "message", "handler", handler, HandlerKind.INLINE, parameters)
    assert bind_arguments(bound, [(b"\xff", INT)]).extra == (b"\xff",)


@pytest.mark.parametrize(
    ("name", "python"),
    [("x-id", "x_id"), ("req.hdr", "req_hdr"), ("class", "class_"), ("é", "é"), ("", "")],
)
def test_identifiers_are_made_of_argument_names(name: str, python: str) -> None:
    assert identifier(name) == python


def test_handlers_tell_how_many_values_go_by_position() -> None:
    def handler(a: int, /, b: int, *, c: int) -> None: ...

    parameters = parse_parameters(handler)
    assert Handler("a", "m", "h", handler, HandlerKind.INLINE, parameters).positional_count == 2


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"event": "on-http"}, "must be one of on-client-session"),
        ({"group": "a b"}, "group 'a b'"),
        ({"event": "on-http-response", "group": "g"}, "not both"),
        ({"condition": "if { path / }"}, "needs an event"),
        ({"condition": "{ path / }", "event": "on-http-response"}, "start with if or unless"),
        ({"condition": "if {\n}", "event": "on-http-response"}, "start with if or unless"),
    ],
)
def test_a_sending_that_haproxy_would_not_take_is_refused(values: Any, why: str) -> None:
    with pytest.raises(RegistrationError, match=why):
        Trigger(**values)


# --- the rules once more, read slowly --------------------------------------------------

NAMES = ["a", "b_c", "class_", "d"]
WIRE_NAMES = ["", "a", "b-c", "b_c", "b.c", "class", "class_", "d", "z"]
ACCEPTS = [frozenset({INT}), frozenset({STR, BIN})]


@st.composite
def parameters(draw: st.DrawFn) -> tuple[Parameter, ...]:
    names = draw(st.permutations(NAMES))[: draw(st.integers(0, len(NAMES)))]
    kinds = sorted(draw(st.sampled_from(range(3))) for _ in names)
    made: list[Parameter] = []
    for name, kind in zip(names, kinds, strict=True):
        fetch = draw(
            st.sampled_from([None, Fetch("f"), Fetch("f", name="z"), Fetch("f", name=name)])
        )
        if fetch and fetch.name and any(each.wire_name == fetch.name for each in made):
            fetch = None  # two of one name are refused at registration
        made.append(
            Parameter(
                name,
                list(ParameterKind)[kind],
                draw(st.sampled_from([Role.ARGUMENT, Role.ARGUMENT, Role.CONTEXT])),
                object,
                draw(st.sampled_from(ACCEPTS)),
                optional=draw(st.booleans()),
                default=draw(st.sampled_from([REQUIRED, 7])),
                fetch=fetch,
            )
        )
    return tuple(made)


shapes = st.lists(
    st.tuples(
        st.sampled_from(WIRE_NAMES).map(str.encode), st.sampled_from([INT, STR, BIN, NULL, IPV4])
    ),
    max_size=7,
)

# What each wire name is in Python, written out.
PYTHON_NAMES = {"b-c": "b_c", "b.c": "b_c", "class": "class_"}


def read_slowly(parameters: tuple[Parameter, ...], shape: Shape) -> Binding:
    """Go through the wire once for each rule, marking who has taken what."""
    owner: list[str | None] = [None] * len(shape)
    names = [name.decode() for name, _ in shape]
    arguments = [each for each in parameters if each.role is Role.ARGUMENT]
    position = 0
    for each in arguments:
        if each.kind is ParameterKind.POSITIONAL_ONLY:
            if position < len(shape):
                owner[position] = each.name
            position += 1
    for rule in ("exact", "mangled", "unnamed"):
        for each in arguments:
            if each.kind is ParameterKind.POSITIONAL_ONLY or each.name in owner:
                continue
            for index, name in enumerate(names):
                renamed = each.fetch is not None and each.fetch.name is not None
                fits = {
                    "exact": name == (each.fetch.name if each.fetch and renamed else each.name),
                    "mangled": not renamed and PYTHON_NAMES.get(name, name) == each.name,
                    "unnamed": name == "" and each.kind is ParameterKind.ORDINARY,
                }[rule]
                if fits and owner[index] is None:
                    owner[index] = each.name
                    break
    extra = tuple(shape[index][0] for index, name in enumerate(owner) if name is None)
    slots = []
    for each in parameters:
        kind = shape[owner.index(each.name)][1] if each.name in owner else NULL
        if each.role is not Role.ARGUMENT:
            slots.append(ParameterSource(each))
        elif kind is not NULL and kind in each.accepts:
            slots.append(ParameterSource(each, owner.index(each.name)))
        elif kind is NULL and each.default is not REQUIRED:
            slots.append(ParameterSource(each, None, each.default))
        elif kind is NULL and each.optional:
            slots.append(ParameterSource(each, None, None))
        else:
            return Binding((), "some reason", extra)
    return Binding(tuple(slots), None, extra)


@settings(deadline=None)
@given(parameters(), shapes)
def test_matching_agrees_with_a_slow_reading_of_the_rules(
    wanted: tuple[Parameter, ...], shape: Shape
) -> None:
    handler = Handler("agent", "message", "handler", print, HandlerKind.INLINE, wanted)
    found, expected = bind_arguments(handler, shape), read_slowly(wanted, shape)
    assert found.slots == expected.slots
    assert found.extra == expected.extra
    assert (found.mismatch is None) == (expected.mismatch is None)
