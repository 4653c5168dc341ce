from __future__ import annotations

import typing
from collections.abc import Callable
from functools import wraps
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest

from spoakit import Context, Fetch, Headers, IPAddress, MaxFrameSize, Message, PerFrame
from spoakit.agent.parameters import (
    REQUIRED,
    Parameter,
    ParameterKind,
    Role,
    parse_parameters,
)
from spoakit.exceptions import RegistrationError
from spoakit.spop._decode_cy import Reading
from spoakit.spop.constants import DataType

if TYPE_CHECKING:
    from decimal import Decimal


# What users who write for older Pythons have; for annotations that are text below.
UNION: Any = typing.Union
OPTIONAL: Any = typing.Optional


class State:
    pass


class NeedsMore:
    def __init__(self, more: int) -> None:
        self.more = more


class Redis:
    pass


INTEGERS = frozenset({DataType.INT32, DataType.UINT32, DataType.INT64, DataType.UINT64})
STRINGS = frozenset({DataType.STRING, DataType.BINARY})


def only(function: Callable[..., Any]) -> Parameter:
    (parameter,) = parse_parameters(function)
    return parameter


def taking(annotation: object) -> Callable[..., Any]:
    """Return a function whose parameter x is annotated so: a type, or text to evaluate."""

    def handler(x: Any) -> None: ...

    handler.__annotations__ = {"x": annotation}
    return handler


@pytest.mark.parametrize(
    ("annotation", "accepts", "reading"),
    [
        (int, INTEGERS, Reading.VALUE),
        (bool, {DataType.BOOL}, Reading.VALUE),
        (IPv4Address, {DataType.IPV4}, Reading.VALUE),
        (IPv6Address, {DataType.IPV6}, Reading.VALUE),
        (IPAddress, {DataType.IPV4, DataType.IPV6}, Reading.VALUE),
        (IPAddress | str, {DataType.IPV4, DataType.IPV6, DataType.STRING}, Reading.VALUE),
        (str, STRINGS, Reading.TEXT),
        (bytes, STRINGS, Reading.BYTES),
        (Headers, STRINGS, Reading.WRAPPED),
    ],
)
def test_an_argument_accepts_the_wire_types_of_its_annotation(
    annotation: object, accepts: frozenset[DataType], reading: Reading
) -> None:
    parameter = only(taking(annotation))
    assert parameter.role is Role.ARGUMENT
    assert (parameter.accepts, parameter.reading) == (accepts, reading)
    assert parameter.when_absent is REQUIRED


@pytest.mark.parametrize(
    "annotation",
    [
        int | None,
        "int | None",
        "OPTIONAL[int]",
        "UNION[None, int]",
        "Annotated[int | None, 'more']",
        "Annotated[int, 'more'] | None",
    ],
)
def test_none_in_the_annotation_stands_for_absent(annotation: object) -> None:
    parameter = only(taking(annotation))
    assert (parameter.annotation, parameter.optional) == (int, True)
    assert parameter.when_absent is None


def test_a_default_comes_before_none() -> None:
    def handler(x: int | None = 3) -> None: ...

    assert only(handler).when_absent == 3


@pytest.mark.parametrize(
    "annotation",
    [
        "IPv6Address | IPv4Address",
        "UNION[IPv6Address, IPv4Address]",
        "OPTIONAL[IPAddress]",
        "IPv4Address | None | IPv6Address",
    ],
)
def test_a_union_of_both_addresses_is_ipaddress_however_it_is_written(annotation: str) -> None:
    assert only(taking(annotation)).annotation == IPAddress


def test_the_kind_of_each_parameter_is_kept() -> None:
    def handler(a: int, /, b: int, *, c: int) -> None: ...

    assert [parameter.kind for parameter in parse_parameters(handler)] == [
        ParameterKind.POSITIONAL_ONLY,
        ParameterKind.ORDINARY,
        ParameterKind.KEYWORD_ONLY,
    ]


def test_what_comes_from_the_frame_is_told_by_its_annotation() -> None:
    def handler(
        context: Context, message: Message, state: PerFrame[State], table: PerFrame[dict[str, int]]
    ) -> None: ...

    assert [(each.role, each.annotation) for each in parse_parameters(handler)] == [
        (Role.CONTEXT, Context),
        (Role.MESSAGE, Message),
        (Role.PER_FRAME, State),
        (Role.PER_FRAME, dict[str, int]),
    ]


def test_the_agreed_frame_size_is_told_from_an_argument() -> None:
    def handler(size: int, agreed: MaxFrameSize) -> None: ...

    size, agreed = parse_parameters(handler)
    assert (size.role, agreed.role) == (Role.ARGUMENT, Role.MAX_FRAME_SIZE)
    assert not agreed.accepts

    def optional(agreed: MaxFrameSize | None) -> None: ...

    with pytest.raises(RegistrationError, match="'agreed': MaxFrameSize is never None"):
        parse_parameters(optional)


def test_any_other_type_is_a_resource() -> None:
    def handler(redis: Redis, table: dict[str, int]) -> None: ...

    assert [(each.role, each.annotation) for each in parse_parameters(handler)] == [
        (Role.RESOURCE, Redis),
        (Role.RESOURCE, dict[str, int]),
    ]


def test_fetch_gives_the_name_on_the_wire() -> None:
    def handler(
        plain: Annotated[str, Fetch("req.hdr(host)")],
        named: Annotated[str | None, Fetch("req.hdr(x-id)", name="x-id")],
    ) -> None: ...

    plain, named = parse_parameters(handler)
    assert (plain.wire_name, named.wire_name) == ("plain", "x-id")
    assert plain.fetch == Fetch("req.hdr(host)")


@pytest.mark.parametrize("expression", ["", " ", "src\n", "a\0b"])
def test_fetch_refuses_what_is_no_expression(expression: str) -> None:
    with pytest.raises(RegistrationError, match="must be a sample expression"):
        Fetch(expression)


@pytest.mark.parametrize("name", ["", "a b", "a=b", "a\tb", "a\0b", "a#b", "a'b"])
def test_fetch_refuses_a_name_that_cannot_stand_before_an_expression(name: str) -> None:
    with pytest.raises(RegistrationError, match="Fetch"):
        Fetch("src", name=name)


def test_annotations_are_evaluated_where_the_undecorated_function_is_from() -> None:
    def handler(x: IPAddress) -> None: ...

    @wraps(handler)
    def wrapped(*args: Any) -> None: ...

    assert only(wrapped).annotation == IPAddress


def test_the_return_annotation_need_not_be_known_at_run_time() -> None:
    def handler(x: int) -> Decimal | None: ...

    assert only(handler).annotation is int


def test_a_bound_method_has_no_self() -> None:
    class Table:
        def look_up(self, x: int) -> None: ...

    assert only(Table().look_up).name == "x"


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        ("Decimal", "cannot be evaluated .*'Decimal' is not defined"),
        ("1 / 0", "cannot be evaluated .*division by zero"),
        ("int | str", "is not allowed; allowed are"),
        ([], "is not a type"),
        (Literal[[]], "is not a type"),
        ("Literal[[]] | None", "cannot be evaluated"),
        ("Redis | None", "leave | None out"),
        ("Annotated[Redis, Fetch('src')]", "Fetch is for arguments"),
        ("Annotated[str, Fetch('src'), Fetch('dst')]", "more than one Fetch"),
        ("PerFrame[NeedsMore]", r"the class must need no arguments: .*'more'"),
        ("PerFrame[int | str]", "must be a class"),
    ],
)
def test_an_annotation_that_cannot_be_filled_is_refused_by_name(
    annotation: object, why: str
) -> None:
    handler = taking(annotation)
    with pytest.raises(RegistrationError, match=why) as caught:
        parse_parameters(handler)
    where = f"{__name__}.{handler.__qualname__}: parameter 'x': "
    assert str(caught.value).startswith(where)


def test_a_parameter_without_annotation_is_told_what_it_can_have() -> None:
    handler = taking(int)
    handler.__annotations__.clear()
    with pytest.raises(RegistrationError, match="no annotation; allowed are int, bool, str"):
        parse_parameters(handler)


def test_parameters_of_any_number_are_refused() -> None:
    def positional(*x: int) -> None: ...
    def named(**x: int) -> None: ...

    for handler in (positional, named):
        with pytest.raises(RegistrationError, match="parameter 'x': name each argument"):
            parse_parameters(handler)


def test_two_parameters_of_one_name_on_the_wire_are_refused() -> None:
    def handler(a: int, b: Annotated[int, Fetch("src_port", name="a")]) -> None: ...

    with pytest.raises(RegistrationError, match="'a' and 'b' have the same name on the wire, 'a'"):
        parse_parameters(handler)
