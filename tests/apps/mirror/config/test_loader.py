import re
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.mirror.config.loader import _settings, read_config
from spoakit.apps.mirror.config.schema import (
    HeaderSettings,
    LogSettings,
    MatchSettings,
    MirrorSettings,
    PathSettings,
    QueueSettings,
    TargetSettings,
    Timeouts,
    TlsSettings,
)
from spoakit.apps.mirror.url import TargetURL
from spoakit.exceptions import ConfigurationError

REFERENCE = Path(__file__).parents[4] / "docs" / "reference" / "mirror-configuration.md"
HEAD = '[[target]]\nurl = "http://h"\n'

Read = Callable[[str], MirrorSettings]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Give `read(text)`, which reads a file with that text."""

    def read(text: str) -> MirrorSettings:
        path = tmp_path / "mirror.toml"
        path.write_text(text)
        return read_config(path)

    return read


def error_of(read: Read, text: str) -> str:
    """Return what is wrong with a file, behind its name."""
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    path, found, reason = str(caught.value).partition("mirror.toml: ")
    assert path.startswith("/")
    assert found
    return reason


def test_a_target_needs_no_more_than_its_url(read: Read) -> None:
    assert read(HEAD) == MirrorSettings((TargetSettings(TargetURL.parse("http://h")),))


FULL = """
drain = "20s"
processing-delay = "5ms"

[log]
format = "json"
sample = 1.5
quiet = true
buffered = false
path = "access.log"

[[target]]
url = "https://staging.example:8443/base"
name = "staging"
http = "2"
sample = 0.5
sample-by = "cookie:session"
match = { methods = ["GET"], path = "^/api/", host = ["*.example.com"], header = { x-t = "^a$" } }
headers = { set = { X-A = "1" }, add = { X-B = "2" }, remove = ["X-C"], secrets = "strip" }
host = "target"
path = { strip-prefix = "/api", pattern = "^/(.)", replace = '/x\\1', add-prefix = "/v2" }
marker = "X-Mirrored: 1"
forwarded-for = true
request-id = true
truncated = "mark"
truncated-suspect = "skip"
body = "none"
max-body = "64KiB"
timeouts = { connect = 1, first-byte = 2.5, total = "1m", min-backoff = "10ms", max-backoff = "1h" }
connections = 3
keep-alive = "2m"
lifetime = "1d"
interface = "eth0"
nameservers = ["10.0.0.53", "[::1]:5353"]
local-ports = "20000-21000"
queue = { length = 10, bytes = "64KiB", overflow = "drop-newest", max-age = "1h" }
rate = 1000
tls = { verify = false, ca-file = "ca.pem", certificate = "a", key = "b", server-name = "n" }
"""


def test_every_key_becomes_a_setting(read: Read, tmp_path: Path) -> None:
    for name in ("ca.pem", "a", "b"):
        (tmp_path / name).touch()
    assert read(FULL) == MirrorSettings(
        (
            TargetSettings(
                url=TargetURL.parse("https://staging.example:8443/base"),
                name="staging",
                http="2",
                sample=0.5,
                sample_by="cookie:session",
                match=MatchSettings(("GET",), "^/api/", ("*.example.com",), (("x-t", "^a$"),)),
                headers=HeaderSettings((("X-A", "1"),), (("X-B", "2"),), ("X-C",), "strip"),
                host="target",
                path=PathSettings("/api", "^/(.)", r"/x\1", "/v2"),
                marker=("X-Mirrored", "1"),
                forwarded_for=True,
                request_id=True,
                truncated="mark",
                truncated_suspect="skip",
                body="none",
                max_body=65536,
                queue=QueueSettings(10, 65536, "drop-newest", 3600),
                rate=1000,
                connections=3,
                keep_alive=120,
                lifetime=86400,
                interface="eth0",
                local_ports=(20000, 21000),
                timeouts=Timeouts(1, 2.5, 60, 0.01, 3600),
                nameservers=("10.0.0.53", "[::1]:5353"),
                tls=TlsSettings(
                    verify=False,
                    ca_file=str(tmp_path / "ca.pem"),
                    certificate=str(tmp_path / "a"),
                    key=str(tmp_path / "b"),
                    server_name="n",
                ),
            ),
        ),
        drain=20,
        log=LogSettings("json", 1.5, True, False, str(tmp_path / "access.log")),
        processing_delay=0.005,
    )


def test_targets_are_read_in_their_order(read: Read) -> None:
    settings = read('[[target]]\nurl = "http://b"\n[[target]]\nurl = "http://a"\n')
    assert [target.name for target in settings.targets] == ["http://b/", "http://a/"]


def test_defaults_are_under_every_target_key_by_key(read: Read) -> None:
    settings = read(
        """
        [defaults]
        sample = 5
        marker = "X-Mirrored: 1"
        timeouts = { connect = 1, total = 2 }
        headers = { set = { a = "1", b = "2" }, remove = ["c"] }
        [[target]]
        url = "http://a"
        [[target]]
        url = "http://b"
        sample = 10
        marker = false
        timeouts = { total = 3 }
        headers = { set = { b = "3" }, remove = ["d"] }
        """
    )
    first, second = settings.targets
    assert (first.sample, second.sample) == (5, 10)
    assert (first.marker, second.marker) == (("X-Mirrored", "1"), None)
    assert first.timeouts == Timeouts(connect=1, total=2)
    assert second.timeouts == Timeouts(connect=1, total=3)
    assert first.headers.set == (("a", "1"), ("b", "2"))
    assert second.headers.set == (("a", "1"), ("b", "3"))
    assert (first.headers.remove, second.headers.remove) == (("c",), ("d",))


TWO = f'{HEAD}name = "live"\n[[target]]\nurl = "http://s"\nname = "staging"\n'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "target: there is none; each is a [[target]] with its url"),
        ("a = \n", "line 1, column 5: Invalid value"),
        ("[a]\n\n[a]\n", "line 3, column 3: Cannot declare"),
        ("a = [", "at its end: Invalid value"),
        ("drian = 5\n", "there is no key 'drian'"),
        ("drain = 1\n", "target: there is none"),
        (f"drain = -1\n{HEAD}", "drain: -1.0 is not in the range 0 to 86400"),
        (f'drain = "5"\n{HEAD}', "drain: '5' is not a time: a number of seconds, or a text such"),
        (f"drain = true\n{HEAD}", "drain: True is not a time"),
        (f"{HEAD}[log]\nformat = 'x'", "log.format: 'x' is not one of text, json"),
        (f"{HEAD}[log]\npath = ''", "log.path: '' is not a file's name"),
        (f'{HEAD}[log]\npath = "a\\u0000"', r"a\x00' is not a file's name"),
        (f"{HEAD}[log]\nquiet = 1", "log.quiet: Expected `bool`, got `int`"),
        ("[target]\nurl = 'http://h'", "target: Expected `array`, got `table`"),
        ("target = [1]", "target[1]: Expected `table`, got `int`"),
        ("[[target]]\nname = 'a'", "target[1]: the key 'url' is missing (the target 'a')"),
        ("[[target]]\nurl = 'h'", "target[1].url: invalid mirror URL 'h': it does not start"),
        ("[[target]]\nurl = 3", "target[1].url: Expected `str`, got `int`"),
        (
            f"{TWO}timeouts = {{ connect = -1 }}",
            "target[2].timeouts.connect: -1.0 is not in the range 0.001 to 86400 "
            "(the target 'staging')",
        ),
        (f"{TWO}timeouts = {{ conect = 1 }}", "target[2].timeouts: there is no key 'conect' (the"),
        (f"{TWO}first_byte = 1", "target[2]: there is no key 'first_byte' (the target 'staging')"),
        (f"{TWO}sample = nan", "target[2].sample: nan is not in the range 0 to 100"),
        (f"{TWO}sample = '5'", "target[2].sample: Expected `float`, got `str`"),
        (f"{TWO}queue = {{ bytes = '5MB' }}", "target[2].queue.bytes: '5MB' is not a size"),
        (f"{TWO}queue = {{ overflow = 'x' }}", "target[2].queue.overflow: 'x' is not one of drop-"),
        (f"{TWO}match = {{ methods = ['GET', 3] }}", "target[2].match.methods[2]: Expected `str`"),
        (f"{TWO}tls = {{ versions = [] }}", "target[2].tls: there is no key 'versions'"),
        (f"{TWO}headers = {{ set = {{ a = 1 }} }}", "headers.set[...]: Expected `str`, got `int`"),
        (f"{TWO}match = {{ path = '(' }}", "target[2].match.path: '(' is not a regular expression"),
        (f"{TWO}match = {{ header = {{ a = '(' }} }}", "target[2].match.header.a: '(' is not a"),
        (
            f"{TWO}headers = {{ secrets = 'x' }}",
            "target[2].headers.secrets: 'x' is not one of keep",
        ),
        (f"{TWO}marker = true", "target[2].marker: true is not a field such as"),
        (f"{TWO}marker = 'X'", "target[2].marker: 'X' is not a field such as"),
        (f"{TWO}local-ports = 'x'", "target[2].local-ports: 'x' is not a port"),
        (f"{TWO}http = '3'", "target[2].http: '3' is not one of auto, 1.1, 2"),
        (f"{TWO}truncated = 'x'", "target[2].truncated: 'x' is not one of skip, send, mark"),
        (f"{TWO}truncated-suspect = 'x'", "target[2].truncated-suspect: 'x' is not one of send, "),
        (f"{TWO}body = 'x'", "target[2].body: 'x' is not one of keep, none"),
        (f"{TWO}max-body = '5MB'", "target[2].max-body: '5MB' is not a size"),
        (f"{TWO}max-body = -1", "target[2].max-body: -1 is not in the range 0 to 17179869184"),
        (f"{TWO}tls = {{ ca-file = 'none.pem' }}", "none.pem' cannot be read: No such file"),
        (f"{TWO}[[target]]\nurl = 'http://x'\nname = 'live'", "target[3].name: 'live' is that of"),
        (f"[defaults]\nurl = 'http://h'\n{TWO}", "defaults: there is no key 'url'"),
        (f"[defaults]\nsample = 101\n{TWO}", "defaults.sample: 101.0 is not in the range 0 to 100"),
        (f"[defaults]\nrate = 'x'\n{TWO}", "defaults.rate: Expected `float`, got `str`"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_reason(
    read: Read, text: str, error: str
) -> None:
    assert error in error_of(read, text)


@pytest.mark.parametrize(
    "text",
    [
        "[[target]]\nurl = 'http://me:sec/ret@h'",
        "[[target]]\nurl = 'http://me:secret@h/?'",
        "[[target]]\nurl = 'http://me:secret@h'\nsample = 101",
        "[[target]]\nurl = 'me:secret@h'\nsample = 'x'",
        "[[target]]\nurl = 'http://me:secret@h'\nheaders.set = { authorization = 'secret' }",
        "[[target]]\nurl = 'http://me:secret@h'\n[[target]]\nurl = 'http://me:secret@h'",
        "[[target]]\nurl = 'http://h'\nheaders.set = { authorization = 'secret\\n' }",
        "[[target]]\nurl = 'http://h'\nheaders.add = { authorization = ' secret' }",
    ],
)
def test_secrets_are_not_shown(read: Read, text: str) -> None:
    error = error_of(read, text.replace("'secret\\n'", '"secret\\n"'))
    assert "ret" not in error
    assert "target[" in error


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KEYS = sorted(set(re.findall(r"^\s*([a-z-]+) = ", FULL, re.M)))


@given(st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=4))
def test_no_value_of_any_key_raises_anything_else(values: dict[str, Any]) -> None:
    table = {"url": "http://h"} | values
    with suppress(ConfigurationError):
        _settings({"target": [table]} | values, Path("/none"))
    with suppress(ConfigurationError):
        _settings({"target": [table], "defaults": values}, Path("/none"))


# The reference.


def examples() -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```", REFERENCE.read_text(), re.M | re.S)


@pytest.mark.parametrize("text", examples())
def test_the_examples_of_the_reference_are_right(read: Read, tmp_path: Path, text: str) -> None:
    for name in re.findall(r'"([\w/.-]+\.pem)"', text):
        (tmp_path / name).touch()
    assert read(text).targets


def keys_of(table: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the keys of a table, with those of the tables in it behind a dot."""
    keys = set()
    for key, value in table.items():
        inner = value[0] if key == "target" else value
        free = f"{prefix}{key}" in ("match.header", "headers.set", "headers.add")
        if isinstance(inner, dict) and not free:
            keys |= keys_of(inner, "" if key == "target" else f"{prefix}{key}.")
        else:
            keys.add(f"{prefix}{key}")
    return keys


def test_the_reference_has_every_key() -> None:
    described = set(re.findall(r"^\| `([a-z.-]+)` \|", REFERENCE.read_text(), re.M))
    assert described == keys_of(tomllib.loads(FULL))
