from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.toml import (
    MAX_SIZE,
    NO_KEY,
    ExistingFile,
    Pairs,
    Prefix,
    Seconds,
    Table,
    convert,
    parse_toml,
    read_settings,
    readable_file,
)
from spoakit.exceptions import ConfigurationError


class Inner(Table, frozen=True):
    some_time: Seconds = 1.0
    names: tuple[str, ...] = ()


class Outer(Table, frozen=True):
    inner: Inner


def test_a_table_becomes_one_of_a_class() -> None:
    table = parse_toml('inner = { some-time = "2m", names = ["a"] }')
    assert convert(table, Outer, "") == Outer(inner=Inner(some_time=120, names=("a",)))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "here: the key 'inner' is missing"),
        ("inner = 1", "here.inner: Expected `table`, got `int`"),
        ("inner = { names = ['a', 2] }", r"here.inner.names\[2\]: Expected `str`, got `int`"),
        ("inner = { some_time = 1 }", "here.inner: there is no key 'some_time'"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_its_key(text: str, error: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{error}$"):
        convert(parse_toml(text), Outer, "here")


class Setting(Table, frozen=True):
    """A table with values whose forms in a file are others."""

    word: Literal["a", "b"] = "a"
    words: tuple[Literal["a", "b"], ...] = ()
    file: ExistingFile | None = None
    pairs: Pairs = ()
    inside: Annotated[int, NO_KEY] = 0

    def __post_init__(self) -> None:
        if self.pairs == (("a", "b"),):
            raise ConfigurationError("pairs: not these")


class Settings(Table, frozen=True):
    name: str
    inner: Setting = Setting()


def test_values_have_the_form_of_the_setting(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    text = "word = 'b'\nwords = ['a', 'b']\nfile = 'f'\npairs = { b = '1', a = '2' }"
    assert convert(parse_toml(text), Setting, "", tmp_path) == Setting(
        word="b",
        words=("a", "b"),
        file=str(tmp_path / "f"),
        pairs=(("b", "1"), ("a", "2")),
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("word = 'c'", r"here.inner.word: 'c' is not one of a, b"),
        ("words = ['a', 'c']", r"here.inner.words: 'c' is not one of a, b"),
        ("words = ['a', 1]", r"here.inner.words\[2\]: Expected `str`, got `int`"),
        ("file = 1", r"here.inner.file: Expected `str`, got `int`"),
        ("file = 'none'", r"here.inner.file: 'none' cannot be read: No such file or directory"),
        ("pairs = 1", r"here.inner.pairs: Expected `table`, got `int`"),
        ("pairs = { a = 1 }", r"here.inner.pairs\[...\]: Expected `str`, got `int`"),
        ("pairs = { a = 'b' }", r"here.pairs: not these"),
        ("inside = 1", r"here.inner: there is no key 'inside'"),
    ],
)
def test_a_value_of_another_form_is_named_with_its_key(text: str, error: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{error}$"):
        convert({"name": "x", "inner": parse_toml(text)}, Settings, "here")


def test_an_error_is_given_the_place_that_it_passes() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"^file: wrong \(all of it\)$"),
        Prefix("file: ", " (all of it)"),
    ):
        raise ConfigurationError("wrong")


def test_files_are_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "list").touch()
    assert readable_file("path", None, tmp_path) is None
    assert readable_file("path", "list", tmp_path) == str(tmp_path / "list")
    with pytest.raises(ConfigurationError, match=r"path: '.*/none' cannot be read: No such file"):
        readable_file("path", "none", tmp_path)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"\xef\xbb\xbfname = 'x'\n")
    assert read_settings(file, lambda table, folder: table) == {"name": "x"}


def test_a_file_that_is_not_there_or_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "app.toml"
    with pytest.raises(ConfigurationError, match=r": No such file or directory"):
        read_settings(path, lambda document, folder: document)
    path.write_bytes(b"#" * (MAX_SIZE + 1))
    with pytest.raises(ConfigurationError, match=r": it is larger than 1048576 bytes"):
        read_settings(path, lambda document, folder: document)
    path.write_bytes(b"a = 1\nb = '\xff'")
    with pytest.raises(ConfigurationError, match=r": line 2: it is not UTF-8: invalid start"):
        read_settings(path, lambda document, folder: document)


@pytest.mark.parametrize("text", ["a = " + "[" * 10_000, "a = " + "9" * 5000])
def test_what_is_too_much_for_the_parser_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_toml(text)


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_no_text_raises_anything_else(text: str) -> None:
    with suppress(ConfigurationError):
        parse_toml(text)
