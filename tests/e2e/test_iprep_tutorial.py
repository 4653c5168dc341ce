"""What docs/tutorials/iprep.md says works as it is written, but for ports and a patient HAProxy."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pytest

from spoakit.testing.haproxy import HAProxy, haproxy_version
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.programs import Program, Start, connect
from tests.support.reputation import CLI, command, is_let_in
from tests.support.waiting import TIMEOUT, wait_until
from tests.support.web_server import web_server

TUTORIAL = Path(__file__).parents[2] / "docs/tutorials/iprep.md"
Edit: TypeAlias = Callable[[str], str]
Configured: TypeAlias = Callable[..., tuple[Program, HAProxy]]
MODE = """\
.if version_atleast(3.1)
    mode spop
.else
    mode tcp
.endif
"""


def unchanged(text: str) -> str:
    return text


def block(start: str) -> str:
    """Return the block that starts with a text."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", TUTORIAL.read_text(), re.M | re.S)
    [found] = [text for text in blocks if text.startswith(start)]
    return str(found)


def without_time(shown: str) -> str:
    return re.sub(r"built .* ago", "built", shown).strip()


@pytest.fixture
def configured(
    start: Start, haproxy: StartHAProxy, haproxy_binary: Path, tmp_path: Path
) -> Configured:
    """Write the tutorial's files, as they are changed by it, and start what reads them."""

    def begin(
        edit_config: Edit = unchanged, edit_proxy: Edit = unchanged, edit_spoe: Edit = unchanged
    ) -> tuple[Program, HAProxy]:
        (tmp_path / "blocked.txt").write_text(block("# An address"))
        (tmp_path / "iprep.toml").write_text(edit_config(block("[policy]")))
        program = start(CLI, *shlex.split(block("spoa-iprep"))[1:-1], "0")
        address = program.address
        # 100 ms are not always enough on a busy machine.
        spoe = edit_spoe(block("[ip-reputation]")).replace("100ms", "2s")
        if haproxy_version(haproxy_binary) < "3.1":
            spoe = spoe.replace(
                "    timeout", "    timeout hello 2s\n    timeout idle 30s\n    timeout"
            )
        running = haproxy(
            edit_proxy(block("defaults"))
            .replace(":8080", '"${FRONTEND}"')
            .replace("127.0.0.1:12345", '"${AGENT}"')
            .replace("    mode spop\n", MODE),
            files={"spoe.cfg": spoe},
            variables={"AGENT": address},
        )
        return program, running

    return begin


def test_a_listed_client_is_rejected_and_so_is_a_banned_one(
    configured: Configured, tmp_path: Path
) -> None:
    _, running = configured()
    _, *lookup = block("$ spoa-iprep lookup").splitlines()
    shown = command(tmp_path, "lookup", "127.0.0.2")
    assert without_time(shown) == without_time("\n".join(lookup))
    assert is_let_in(running, "127.0.0.1")
    assert not is_let_in(running, "127.0.0.2")

    ban, unban = re.findall("spoa-iprep (.*) --control", block("$ spoa-iprep ban"))
    assert command(tmp_path, *shlex.split(ban)).startswith("127.0.0.3 has a score of 0 until ")
    wait_until(lambda: not is_let_in(running, "127.0.0.3"), "the ban in the worker that is asked")
    assert command(tmp_path, *shlex.split(unban)) == "127.0.0.3 is banned no more\n"
    wait_until(lambda: all(is_let_in(running, "127.0.0.3") for _ in range(5)), "its end")


def test_a_line_more_is_soon_in_use_and_a_broken_list_changes_nothing(
    configured: Configured, tmp_path: Path
) -> None:
    _, running = configured()
    blocked = tmp_path / "blocked.txt"
    blocked.write_text(blocked.read_text() + "127.0.0.4\n")
    wait_until(lambda: not is_let_in(running, "127.0.0.4"), "the new table")
    blocked.write_text("<html>\n")
    wait_until(lambda: "what was read of it before stays" in sources(tmp_path), "the fault")
    assert not is_let_in(running, "127.0.0.4")
    assert not is_let_in(running, "127.0.0.2")


def test_a_feed_is_added_by_a_reload(configured: Configured, tmp_path: Path) -> None:
    program, running = configured()
    config = tmp_path / "iprep.toml"
    with web_server() as page:
        page.body = b'{"cidr": "127.0.0.5/32"}\n{"type": "metadata", "records": 1}\n'
        cache = block("cache").replace("/var/lib/spoa-iprep", str(tmp_path / "cache"))
        source = re.sub('url = ".*"', f'url = "{page.url}"', block('[[source]]\nname = "drop"'))
        config.write_text(f"{cache}{config.read_text()}{source}")
        program.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not is_let_in(running, "127.0.0.5"), "the feed")
        assert not is_let_in(running, "127.0.0.2")


def test_clients_behind_proxies_are_known_by_all_lines_of_their_header(
    configured: Configured, tmp_path: Path
) -> None:
    def with_proxies(config: str) -> str:
        ours = block("[answers]").replace('["203.0.113.0/24"]', '["203.0.113.0/24", "127.0.0.1"]')
        return config + ours

    def about_requests(spoe: str) -> str:
        old = spoe[spoe.index("spoe-message") :]
        return spoe.replace(old, block("spoe-message"))

    def with_its_rule(proxy: str) -> str:
        [rule] = re.findall(r"`(http-request deny if .*?)`", TUTORIAL.read_text())
        return re.sub("tcp-request content reject .*", rule, proxy)

    _, running = configured(with_proxies, with_its_rule, about_requests)
    assert status(running, "192.0.2.5") == 403
    assert status(running, "192.0.2.5", "203.0.113.7") == 403
    assert status(running, "192.0.3.5", "203.0.113.7") == 200
    # Whoever writes the header is not believed beyond the last proxy that is.
    assert status(running, "192.0.2.5", "192.0.3.5", "203.0.113.7") == 200
    assert status(running) == 200


def status(haproxy: HAProxy, *forwarded: str) -> int:
    """Return the status of a response to a request with lines of X-Forwarded-For."""
    with closing(connect(haproxy)) as client:
        client.putrequest("GET", "/")
        for line in forwarded:
            client.putheader("X-Forwarded-For", line)
        client.endheaders()
        return client.getresponse().status


def sources(folder: Path) -> str:
    """Return what the command `sources` says, whether or not something is wrong."""
    control = ("--control", str(folder / "control.sock"))
    done = subprocess.run(
        [sys.executable, "-m", CLI, "sources", *control],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    return done.stdout
