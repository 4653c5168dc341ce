from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spoakit.apps.environment import expand_variables
from spoakit.apps.iprep.config.loader import read_config as read_iprep
from spoakit.apps.mirror.config.loader import read_config as read_mirror
from spoakit.apps.toml import parse_toml
from spoakit.exceptions import ConfigurationError

ENVIRONMENT = {"USER": "me", "EMPTY": "", "_x9": "y", "SECRET": "s3cret", "KEYS": '"\nb = "2'}


def expand(text: str) -> Any:
    return expand_variables({"a": text}, ENVIRONMENT)["a"]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("", ""),
        ("${USER}", "me"),
        ("http://${USER}:${SECRET}@h/${USER}", "http://me:s3cret@h/me"),
        ("[${EMPTY}]", "[]"),
        ("${_x9}", "y"),
        ("${NONE:-some default}", "some default"),
        ("${NONE:-}", ""),
        ("${NONE:-a:-b}", "a:-b"),
        ("${EMPTY:-default}", "default"),
        ("${USER:-default}", "me"),
        ("$${USER}", "${USER}"),
        ("$$${USER}", "$${USER}"),
        ("$${", "${"),
        ("$${${USER}}", "${me}"),
        ("$USER", "$USER"),
        ("$", "$"),
        ("$ {USER}", "$ {USER}"),
        ("^a$", "^a$"),
        (r"\${USER}", r"\me"),
    ],
)
def test_variables_are_replaced(text: str, expanded: str) -> None:
    assert expand(text) == expanded


@pytest.mark.parametrize("value", ["${USER}", "$${x}", "${", "'}"])
def test_what_a_value_has_is_not_looked_at_again(value: str) -> None:
    assert expand_variables({"a": "<${X}>"}, {"X": value}) == {"a": f"<{value}>"}


def test_values_bring_no_keys_and_keys_are_left_alone() -> None:
    document = parse_toml(
        'a = "${KEYS}"\n"${USER}" = 1\n[[t]]\nc = ["$${", { d = "${USER}" }, 1.5]'
    )
    assert expand_variables(document, ENVIRONMENT) == {
        "a": '"\nb = "2',
        "${USER}": 1,
        "t": [{"c": ["${", {"d": "me"}, 1.5]}],
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("${NONE}", "the variable NONE is not set in the environment; set it, or give a default"),
        ("${user}", "the variable user is not set"),
        ("${USER", "a '${' has no '}'; write $${ for a literal ${"),
        ("a${", "a '${' has no '}'"),
        ("${}", "is not ${NAME} or ${NAME:-default}; write $${ for a literal ${"),
        ("${s3cret pass}", "is not ${NAME}"),
        ("${9}", "is not ${NAME}"),
        ("${USER:default}", "is not ${NAME}"),
        ("${USER:-${SECRET}}", "is not ${NAME}"),
        ("${U\u00dc}", "is not ${NAME}"),
        ("${USER\n}", "is not ${NAME}"),
    ],
)
def test_what_cannot_be_replaced_is_named_with_its_key(text: str, error: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        expand_variables({"t": [{"a": 1}, {"b": {"c": ["x", text]}}]}, ENVIRONMENT)
    assert str(caught.value).startswith("t[2].b.c[2]: ")
    assert error in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_value_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^a: the variable X is not UTF-8$"):
        expand_variables({"a": "${X}"}, {"X": "caf\udce9"})


def test_a_document_of_any_depth_is_expanded_or_refused() -> None:
    document: dict[str, Any] = {}
    for _ in range(100_000):
        document = {"a": document}
    with pytest.raises(ConfigurationError, match="nested too deeply"):
        expand_variables(document, {})


TEXT = st.text(st.characters(codec="utf-8")).filter(lambda text: "${" not in text)
VALUE = st.recursive(
    st.integers() | st.booleans() | st.floats(allow_nan=False) | TEXT | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.text(), VALUE, max_size=3))
@example({"a": "$$ {$}{ }$"})
def test_what_has_no_variable_does_not_change(document: dict[str, Any]) -> None:
    assert expand_variables(document, {}) == document


@given(st.text(st.characters(codec="utf-8")))
def test_every_text_can_be_written(text: str) -> None:
    assert expand(text.replace("${", "$${")) == text


# The files of both applications.


def test_a_target_may_have_its_secrets_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mirror.toml"
    file.write_text(
        "drain = '${DRAIN:-3s}'\n[[target]]\nurl = 'https://${USER}:${PASSWORD}@h'\n"
        "headers.set = { x-key = '${KEY}' }\nqueue.bytes = '${BYTES}'\nconnections = 3\n"
    )
    for name, value in {"USER": "me", "PASSWORD": "s3cret", "KEY": "k", "BYTES": "2MiB"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DRAIN", raising=False)
    settings = read_mirror(file)
    assert settings.drain == 3
    [target] = settings.targets
    assert target.url.authorization == "Basic bWU6czNjcmV0"
    assert target.headers.set == (("x-key", "k"),)
    assert target.queue.bytes == 2 * 1024**2
    monkeypatch.setenv("DRAIN", "5m")  # what a reload finds
    assert read_mirror(file).drain == 300


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, "{}: target[2].url: the variable PASSWORD is not set in the environment"),
        ("s3/cret", "{}: target[2].url: invalid mirror URL 'http://***@h'"),
        ("s3cret\n", "{}: target[2].url: invalid mirror URL 'http://***@h'"),
    ],
)
def test_a_secret_that_is_wrong_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, error: str
) -> None:
    file = tmp_path / "mirror.toml"
    file.write_text("[[target]]\nurl = 'http://h'\n[[target]]\nurl = 'http://me:${PASSWORD}@h'\n")
    monkeypatch.delenv("PASSWORD", raising=False)
    if value is not None:
        monkeypatch.setenv("PASSWORD", value)
    with pytest.raises(ConfigurationError) as caught:
        read_mirror(file)
    assert str(caught.value).startswith(error.format(file))
    assert "cret" not in str(caught.value).removeprefix(str(file))


def test_a_number_cannot_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mirror.toml"
    file.write_text("[[target]]\nurl = 'http://h'\nconnections = '${COUNT}'\n")
    monkeypatch.setenv("COUNT", "3")
    with pytest.raises(ConfigurationError, match=r"target\[1\].connections: Expected `int`"):
        read_mirror(file)


def test_the_other_application_has_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "iprep.toml"
    file.write_text(
        "cache = 'cache'\n[[source]]\nname = 'a'\ntype = 'list'\n"
        "url = 'https://me:${FEED}@h/list'\n"
    )
    monkeypatch.setenv("FEED", "s3cret")
    assert read_iprep(file).sources[0].url == "https://me:s3cret@h/list"
    monkeypatch.setenv("FEED", "s3cret\n")
    with pytest.raises(ConfigurationError, match=r"source\[1\].url: 'https://\*\*\*@h/list' is"):
        read_iprep(file)
    monkeypatch.delenv("FEED")
    with pytest.raises(ConfigurationError, match=r"source\[1\].url: the variable FEED is not set"):
        read_iprep(file)
