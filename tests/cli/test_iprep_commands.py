"""The commands, against a control socket whose answers the tests give."""

import asyncio
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from spoakit.apps.iprep.config.schema import ControlSettings
from spoakit.apps.iprep.control.paths import CONTROL_VARIABLE
from spoakit.apps.iprep.control.socket import Answer, Request, serve_control
from spoakit.cli import iprep
from spoakit.cli.iprep_answers import columns, duration
from spoakit.exceptions import SpoakitError

HOUR = 3600.0


class Control:
    """A control socket: what it is asked, and what it answers."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.requests: list[Request] = []
        self.answer: Answer = {}
        self.error = ""

    async def handle(self, request: Request, user: int) -> Answer:
        self.requests.append(request)
        if self.error:
            raise SpoakitError(self.error)
        return self.answer

    @contextmanager
    def served(self) -> Iterator[None]:
        ready, stop = Event(), asyncio.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            async with serve_control(ControlSettings(self.path), self.handle):
                ready.set()
                await stop.wait()

        thread = Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        assert ready.wait(10)
        yield
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    monkeypatch.delenv(CONTROL_VARIABLE, raising=False)
    control = Control(str(tmp_path / "control"))
    with control.served():
        yield control


Tell = Callable[..., list[str]]


@pytest.fixture
def tell(control: Control, capsys: pytest.CaptureFixture[str]) -> Tell:
    """Run a command, and return the lines it prints."""

    def tell(*arguments: str) -> list[str]:
        assert iprep.main([*arguments, "--control", control.path]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        return shown.out.splitlines()

    return tell


def ban(address: str, until: float, **more: Any) -> dict[str, Any]:
    return {"address": address, "score": 0, "until": until, "reason": "", **more}


@pytest.mark.parametrize(
    ("arguments", "request_made"),
    [
        (["ban", "192.0.2.7"], {"address": "192.0.2.7", "seconds": 3600.0, "score": 0}),
        (
            ["ban", "2001:db8::/32", "--for", "90s", "--score=20", "--reason", "it floods"],
            {"address": "2001:db8::/32", "seconds": 90.0, "score": 20, "reason": "it floods"},
        ),
        (["ban", "--for=7d", "192.0.2.0/24"], {"address": "192.0.2.0/24", "seconds": 604800.0}),
    ],
)
def test_a_ban_is_made_and_its_end_shown(
    control: Control, tell: Tell, arguments: list[str], request_made: Request
) -> None:
    until = 1764080000.0
    control.answer = ban("192.0.2.7", until, score=20)
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(until))
    assert tell(*arguments) == [f"192.0.2.7 has a score of 20 until {shown}"]
    [request] = control.requests
    assert request == {"command": "ban", "score": 0, "reason": "", **request_made}


def test_a_ban_is_ended(control: Control, tell: Tell) -> None:
    control.answer = {"address": "192.0.2.0/24"}
    assert tell("unban", "192.0.2.0/24") == ["192.0.2.0/24 is banned no more"]
    assert control.requests == [{"command": "unban", "address": "192.0.2.0/24"}]


def test_bans_are_ended_by_network_and_all(control: Control, tell: Tell) -> None:
    control.answer = {"address": "192.0.2.0/24", "count": 3}
    assert tell("unban", "192.0.2.0/24") == ["192.0.2.0/24 is banned no more: 3 bans were ended"]
    control.answer = {"address": "", "count": 1200}
    assert tell("unban", "--all") == ["all bans were ended: 1,200"]
    assert control.requests[1:] == [{"command": "unban", "all": True}]


def test_a_source_is_updated(control: Control, tell: Tell) -> None:
    control.answer = {"source": "drop", "download": "new", "entries": 1500, "fault": ""}
    assert tell("update", "drop") == [
        "drop: the download is new, and 1,500 entries are in the table"
    ]
    control.answer = {"source": "mine", "download": "", "entries": 1, "fault": "it is gone"}
    assert tell("update", "--accept-shrink", "mine") == [
        "mine: 1 entries are in the table; it is gone"
    ]
    assert control.requests == [
        {"command": "update", "source": "drop"},
        {"command": "update", "source": "mine", "accept-shrink": True},
    ]


class Stdin:
    """Standard input with these bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_many_addresses_come_from_standard_input(
    control: Control,
    tell: Tell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    control.answer = lookup(score=10, rule="lowest", source="drop")
    monkeypatch.setattr(sys, "stdin", Stdin(b"192.0.2.7\n\n# none\n 2001:db8::1 # one\n"))
    line = f"{'192.0.2.7':<39}   10  lowest    drop"
    assert tell("lookup", "-") == [line, line]
    assert [request["address"] for request in control.requests] == ["192.0.2.7", "2001:db8::1"]
    monkeypatch.setattr(sys, "stdin", Stdin(b"192.0.2.7"))
    [line] = tell("lookup", "-", "--json")
    assert json.loads(line) == control.answer
    control.requests.clear()
    control.answer = ban("192.0.2.7", 1e9)
    monkeypatch.setattr(sys, "stdin", Stdin(b"192.0.2.7\nwrong\n\xff\n192.0.2.0/24\r\n"))
    assert iprep.main(["ban", "-", "--for=90s", "--control", control.path]) == 1
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert [error.split("(")[0] for error in shown.err.splitlines()] == [
        "ERROR: line 2: invalid address 'wrong' ",
        "ERROR: line 3: invalid address '\ufffd' ",
    ]
    assert control.requests == [
        {"command": "ban", "address": address, "seconds": 90.0, "score": 0, "reason": ""}
        for address in ("192.0.2.7", "192.0.2.0/24")
    ]


def test_what_is_refused_of_many_leaves_the_others(
    control: Control, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    control.error = "it is not banned"
    monkeypatch.setattr(sys, "stdin", Stdin(b"192.0.2.7\n192.0.2.8\n"))
    assert iprep.main(["unban", "-", "--control", control.path]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"ERROR: line {number}: it is not banned" for number in (1, 2)]
    assert len(control.requests) == 2


def test_the_bans_are_listed_with_the_time_left(control: Control, tell: Tell) -> None:
    now = time.time()
    control.answer = {
        "bans": [
            ban("192.0.2.7", now - 1, reason="just over"),
            ban("2001:db8::/32", now + 26.5 * HOUR, score=100, reason="a\x1b[2Jb"),
        ]
    }
    assert tell("bans") == [
        "ADDRESS        SCORE   LEFT  REASON",
        "192.0.2.7          0     0s  just over",
        "2001:db8::/32    100  1d 2h  a?[2Jb",
    ]
    control.answer = {"bans": []}
    assert tell("bans") == ["there are no bans"]
    assert control.requests == [{"command": "bans"}] * 2


def lookup(**more: Any) -> dict[str, Any]:
    return {
        "address": "192.0.2.7",
        "score": 100,
        "rule": "unknown",
        "source": "",
        "category": "",
        "asn": None,
        "country": "",
        "ban": None,
        "says": [],
        "table": {"built": time.time() - 26.5 * HOUR, "entries": 1234567},
        **more,
    }


def test_a_lookup_shows_the_score_the_rule_and_what_each_source_says(
    control: Control, tell: Tell
) -> None:
    control.answer = lookup(
        score=10,
        rule="lowest",
        source="drop",
        category="hijacked",
        asn=64500,
        country="DE",
        says=[
            {"source": "drop", "state": "listed", "score": 10, "category": "hijacked"},
            {"source": "a-long-name", "state": "absent", "score": None, "category": ""},
            {"source": "zen", "state": "failed", "score": None, "category": ""},
        ],
    )
    assert tell("lookup", "192.0.2.7") == [
        "192.0.2.7 has a score of 10: the lowest of the sources that have it",
        "source: drop",
        "category: hijacked",
        "autonomous system: 64500",
        "country: DE",
        "",
        "SOURCE       SAYS    SCORE  CATEGORY",
        "drop         listed     10  hijacked",
        "a-long-name  absent      -",
        "zen          failed      -",
        "",
        "table: 1,234,567 entries, built 1d 2h ago",
    ]
    assert control.requests == [{"command": "lookup", "address": "192.0.2.7"}]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("ban", "it is banned"),
        ("allow", "it is allowed, whatever else is known"),
        ("private", "it is not of the public Internet, so that sources do not count"),
        ("weighted", "the weighted mean of the sources that have it"),
        ("unknown", "no source has it"),
        ("a-new-one", "a-new-one"),
    ],
)
def test_the_rule_that_decided_is_put_into_words(
    control: Control, tell: Tell, rule: str, words: str
) -> None:
    control.answer = lookup(rule=rule)
    assert tell("lookup", "192.0.2.7")[0] == f"192.0.2.7 has a score of 100: {words}"


def test_a_lookup_shows_the_ban(control: Control, tell: Tell) -> None:
    control.answer = lookup(
        rule="ban", ban=ban("192.0.2.0/24", time.time() + 2.5 * HOUR + 30, reason="it floods")
    )
    assert "banned as 192.0.2.0/24 for another 2h 30m: it floods" in tell("lookup", "192.0.2.7")


def source(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": "list",
        "place": f"/lists/{name}.txt",
        "state": "ok",
        "entries": None,
        "age": None,
        "failed_lines": 0,
        "line_errors": [],
        "error": "",
        "asked": None,
        "failures": None,
        **more,
    }


def test_the_sources_are_shown_with_their_errors(control: Control, tell: Tell) -> None:
    control.answer = {
        "sources": [
            source(
                "mine",
                entries=12345,
                age=11045.7,
                failed_lines=1500,
                line_errors=["line 3: x"],
                masked=2000,
                warning="it has 6 percent",
            ),
            source("feed", state="failed", place="http://h/f", error="503 Unavailable"),
            source("zen", type="dnsbl", place="zen.example", asked=7, failures=2),
        ],
        "table": {"built": time.time(), "entries": 12345, "size": 3 << 20, "generation": 4},
    }
    lines = tell("sources")
    assert lines[:-1] == [
        "NAME  TYPE   STATE   ENTRIES    AGE  ASKED  FAILED  PLACE            ERROR",
        "mine  list   ok       12,345  3h 4m      -       -  /lists/mine.txt  -",
        "feed  list   failed        -      -      -       -  http://h/f       503 Unavailable",
        "zen   dnsbl  ok            -      -      7       2  zen.example      -",
        "",
        "mine: it has 6 percent",
        "mine: 2,000 networks have bits set behind their prefix, which do not count",
        "mine: 1,500 lines are refused",
        "  line 3: x",
        "",
    ]
    assert lines[-1].startswith("table: 12,345 entries, 3.0 MiB, built ")
    assert lines[-1].endswith(" ago, generation 4")


def test_answers_can_be_had_as_json(control: Control, tell: Tell) -> None:
    control.answer = {"bans": [], "new": "caf\u00e9"}
    [line] = tell("bans", "--json")
    assert json.loads(line) == control.answer


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ({}, "there is no such ban", "there is no such ban"),
        (
            {"bans": 1},
            "",
            "cannot parse the response: Expected `array`, got `int` - at `$.bans`",
        ),
    ],
)
def test_an_error_is_told_and_ends_with_1(
    control: Control, capsys: pytest.CaptureFixture[str], answer: Answer, error: str, reason: str
) -> None:
    control.answer, control.error = answer, error
    assert iprep.main(["bans", "--control", control.path]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"ERROR: {reason}")
    assert shown.out == ""


def test_where_nobody_listens_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert iprep.main(["sources", f"--control={tmp_path}/none"]) == 1
    assert capsys.readouterr().err.startswith(f"ERROR: no spoa-iprep answers at '{tmp_path}/none'")


def test_the_socket_is_that_of_the_file_or_of_the_environment(
    control: Control,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    control.answer = {"bans": []}
    file = tmp_path / "iprep.toml"
    file.write_text('[control]\npath = "control"\n')
    assert iprep.main(["bans", f"--config={file}"]) == 0
    monkeypatch.setenv(CONTROL_VARIABLE, control.path)
    assert iprep.main(["bans"]) == 0
    monkeypatch.setenv(CONTROL_VARIABLE, "/absent/control")
    assert iprep.main(["bans"]) == 1
    assert iprep.main(["bans", f"--config={file}"]) == 0
    assert iprep.main(["bans", f"--config={tmp_path}/none", f"--control={control.path}"]) == 0
    file.write_text("")
    monkeypatch.setenv(CONTROL_VARIABLE, control.path)
    assert iprep.main(["bans", f"--config={file}"]) == 0
    assert len(control.requests) == 5
    assert "/absent/control" in capsys.readouterr().err


def test_a_command_uses_the_control_table_of_the_file_alone(
    control: Control, tmp_path: Path
) -> None:
    # Whoever may use the socket need not be able to read the secrets of the service.
    control.answer = {"bans": []}
    file = tmp_path / "iprep.toml"
    file.write_text(
        'cache = "${UNSET_HERE}"\n[control]\npath = "control"\n'
        '[[source]]\nname = "feed"\ntype = "list"\nurl = "http://127.0.0.1/"\n'
        'headers = { Auth-Key = "@/absent/key" }\n'
    )
    assert iprep.main(["bans", f"--config={file}"]) == 0
    assert len(control.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["ban"], "ADDRESS: give one address, not none"),
        (["ban", "192.0.2.7", "192.0.2.8"], "ADDRESS: give one address, not 2"),
        (["unban"], "ADDRESS: give one address, not none"),
        (["unban", "--all", "::1", "::2"], "ADDRESS: give one address, not 2"),
        (["update"], "SOURCE: give one source, not none"),
        (["bans", "-"], "unrecognized arguments: -"),
        (["bans", "192.0.2.7"], "unrecognized arguments: 192.0.2.7"),
        (["ban", "x"], "invalid address 'x' (ADDRESS: an address or a network such as"),
        (["unban", "192.0.2.7/24"], "invalid address '192.0.2.7/24' (ADDRESS: an address or a"),
        (["lookup", "192.0.2.0/24"], "invalid address '192.0.2.0/24' (ADDRESS: an address)"),
        (["ban", "::1", "--score=101"], "invalid score '101' (--score: allowed range [0, 100])"),
        (["ban", "::1", "--for=0"], "invalid for '0' (--for: allowed range [1.00s, 31622400.00s])"),
        (["ban", "::1", "--for=10"], "invalid for '10' (--for: say 10s or 10ms)"),
    ],
)
def test_a_wrong_command_line_is_named_and_ends_with_64(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        iprep.main(arguments)
    assert caught.value.code == 64
    shown = capsys.readouterr()
    assert shown.err.startswith(f"ERROR: {error}")
    assert f"Usage: spoa-iprep {arguments[0]} " in shown.out


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("/absent/i.toml", "/absent/i.toml: No such file or directory"),
        ("none.toml", "none.toml: control.path is false, so it has no control socket"),
    ],
)
def test_a_configuration_without_a_control_socket_is_named(
    file: str,
    error: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "none.toml").write_text("control.path = false\n")
    monkeypatch.chdir(tmp_path)
    assert iprep.main(["bans", f"--config={file}"]) == 64
    shown = capsys.readouterr()
    assert (shown.err, shown.out) == (f"ERROR: {error}\n", "")


@pytest.mark.parametrize("command", ["ban", "unban", "bans", "lookup", "sources", "update"])
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert iprep.main([command, "-h"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"\nUsage: spoa-iprep {command} ")
    assert "--control=PATH" in shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0s"),
        (0.9, "0s"),
        (59, "59s"),
        (60, "1m"),
        (3599, "59m 59s"),
        (3601, "1h"),
        (90_000, "1d 1h"),
        (31_622_400, "366d"),
    ],
)
def test_times_are_shown_in_their_two_largest_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_columns_are_as_wide_as_they_must_be_and_no_wider_than_they_may() -> None:
    shown = columns(("A", "B"), [("x" * 300, "\u202e1"), ("y", "22")], right=(1,)).splitlines()
    assert [len(line) for line in shown] == [207, 207, 207]
    assert shown[1].endswith("x...  ?1")
