"""spoakit.testing.haproxy: a real HAProxy starts, answers, logs and goes without traces."""

import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from spoakit.exceptions import ConfigurationError, StartupError
from spoakit.testing.haproxy import HAProxy, find_haproxy, haproxy_version
from spoakit.testing.pytest_plugin import StartHAProxy

CONFIG = """\
defaults
    log global
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s

frontend front
    bind "${FRONTEND-:8080}"
    log-format "%HM %HU from %ci"
    http-request return status 200 content-type text/plain string "${GREETING-hello}"
"""
CHECKED_SERVER = """
backend origins
    server origin "${ORIGIN}" check inter 50ms fall 1 rise 1
"""

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def private_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test leaves behind shows in a folder of its own, and fails the test."""
    threads = threading.active_count()
    with TemporaryDirectory() as folder:  # pytest's own has too long a path for a Unix socket
        inside = partial(TemporaryDirectory, dir=folder)
        monkeypatch.setattr("spoakit.testing.haproxy.TemporaryDirectory", inside)
        yield
        assert os.listdir(folder) == []
    assert threading.active_count() == threads


def get(haproxy: HAProxy, path: str = "/") -> str:
    url = f"http://127.0.0.1:{haproxy.ports['FRONTEND']}{path}"
    with urllib.request.urlopen(url, timeout=5) as response:
        body: bytes = response.read()
    return body.decode()


def stub_haproxy(folder: Path, script: str) -> Path:
    """Write a program that is not HAProxy."""
    stub = folder / "haproxy"
    stub.write_text(f"#!/bin/sh\n{script}\n")
    stub.chmod(0o755)
    return stub


def test_it_serves_as_soon_as_the_context_is_entered() -> None:
    with HAProxy(CONFIG) as haproxy:
        assert get(haproxy) == "hello"


def test_it_logs_what_goes_to_the_global_log() -> None:
    with HAProxy(CONFIG) as haproxy:
        get(haproxy, "/some/where")
        found = haproxy.wait_for_log(r"^(\w+) /some/where from 127\.0\.0\.1$")
        assert found[1] == "GET"
        assert found[0] in haproxy.logs


def test_a_line_that_never_comes_is_a_timeout_that_shows_what_came() -> None:
    with HAProxy(CONFIG) as haproxy:
        get(haproxy, "/here")
        haproxy.wait_for_log("/here")
        with pytest.raises(TimeoutError, match=r"no line matches 'never' in 0\.01 s: (?s:.*)/here"):
            haproxy.wait_for_log("never", timeout=0.01)


def test_logs_can_be_read_after_the_stop() -> None:
    with HAProxy(CONFIG) as haproxy:
        get(haproxy, "/last")
        found = haproxy.wait_for_log("/last")
    assert found.string in haproxy.logs


def test_variables_are_expanded_in_the_configuration_and_in_its_files() -> None:
    spoe = """\
[engine]
spoe-agent agent
    messages message
    option var-prefix "${PREFIX}"
    timeout processing 10ms
    use-backend agents
spoe-message message
    event on-frontend-http-request
"""
    config = CONFIG.replace(
        "log-format", "filter spoe engine engine config spoe.cfg\n    log-format"
    )
    config += "\nbackend agents\n    mode tcp\n    server agent 127.0.0.1:1\n"
    good = {"PREFIX": "prefix", "GREETING": "hi there"}
    with HAProxy(config, files={"spoe.cfg": spoe}, variables=good) as haproxy:
        assert get(haproxy) == "hi there"
    with pytest.raises(ConfigurationError, match="var-prefix"):
        HAProxy(config, files={"spoe.cfg": spoe}, variables={"PREFIX": "not a prefix"}).check()


def test_every_listener_gets_its_address_and_a_port() -> None:
    config = CONFIG + '\nlisten other\n    bind "$OTHER"\n    http-request return status 204\n'
    listeners = {"FRONTEND": "127.0.0.1", "OTHER": "127.0.0.2"}
    with HAProxy(config, listeners=listeners) as haproxy:
        assert get(haproxy) == "hello"
        url = f"http://127.0.0.2:{haproxy.ports['OTHER']}/"
        with urllib.request.urlopen(url, timeout=5) as response:
            assert response.status == 204


def test_a_listener_listens_on_ipv6() -> None:
    with HAProxy(CONFIG, listeners={"FRONTEND": "::1"}) as haproxy:
        urllib.request.urlopen(f"http://[::1]:{haproxy.ports['FRONTEND']}/v6", timeout=5).close()
        haproxy.wait_for_log("/v6 from ::1")


def test_a_listener_that_no_bind_line_names_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r'BACKEND is not used: write bind "\$\{BACKEND\}"'
    ):
        HAProxy(CONFIG, listeners={"BACKEND": "127.0.0.1"})


def test_two_run_beside_each_other() -> None:
    with HAProxy(CONFIG) as one, HAProxy(CONFIG, variables={"GREETING": "two"}) as two:
        assert (get(one), get(two)) == ("hello", "two")


def test_a_refused_configuration_shows_what_haproxy_says_of_it() -> None:
    haproxy = HAProxy(CONFIG + "    no-such-keyword\n")
    with pytest.raises(ConfigurationError, match=r"haproxy\.cfg:1\d.*no-such-keyword"):
        haproxy.start()


def test_a_check_returns_the_warnings() -> None:
    assert HAProxy(CONFIG).check() == ""
    assert "missing timeouts" in HAProxy(re.sub(r" +timeout.*\n", "", CONFIG)).check()


def test_it_answers_commands() -> None:
    with HAProxy(CONFIG) as haproxy:
        assert f"Version: {haproxy.version}" in haproxy.command("show info")


def test_a_command_to_a_stopped_one_is_an_error() -> None:
    with pytest.raises(ConnectionError, match="show info"):
        HAProxy(CONFIG).command("show info")


def test_the_status_of_a_server_follows_its_checks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as origin:
        variables = {"ORIGIN": f"127.0.0.1:{origin.getsockname()[1]}"}
        with HAProxy(CONFIG + CHECKED_SERVER, variables=variables) as haproxy:
            assert haproxy.server_status("origins", "origin") == "UP"
            origin.close()
            haproxy.wait_for_log("Server origins/origin is DOWN")
            assert haproxy.server_status("origins", "origin") == "DOWN"
            with pytest.raises(KeyError, match="origins/no-such"):
                haproxy.server_status("origins", "no-such")


def test_a_stopped_one_refuses_connections_and_can_start_again() -> None:
    haproxy = HAProxy(CONFIG)
    with haproxy:
        port = haproxy.ports["FRONTEND"]
    assert haproxy.ports == {}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with haproxy:
        assert get(haproxy) == "hello"
        with pytest.raises(StartupError, match="already running"):
            haproxy.start()
    haproxy.stop()


def test_a_listener_that_cannot_be_bound_leaves_nothing_behind() -> None:
    config = CONFIG + '\nlisten other\n    bind "$OTHER"\n'
    haproxy = HAProxy(config, listeners={"FRONTEND": "127.0.0.1", "OTHER": "192.0.2.1"})
    with pytest.raises(OSError, match="assign requested address"):
        haproxy.start()
    assert haproxy.ports == {}


def test_one_that_ends_at_once_is_an_error_with_its_output(tmp_path: Path) -> None:
    stub = stub_haproxy(
        tmp_path,
        'case "$*" in -v) echo HAProxy version 9.9.9;; *-c*) ;; *) echo alas; exit 1; esac',
    )
    with pytest.raises(StartupError, match=r"HAProxy 9\.9\.9 ended at once: alas"):
        HAProxy(CONFIG, binary=stub).start()


def test_one_that_never_answers_is_an_error_and_is_ended(tmp_path: Path) -> None:
    stub = stub_haproxy(
        tmp_path,
        f'case "$*" in -v) echo HAProxy version 9.9.9;; *-c*) ;; *) echo $$ >{tmp_path}/pid; '
        "exec sleep 60; esac",
    )
    with pytest.raises(StartupError, match="does not answer"):
        HAProxy(CONFIG, binary=stub).start(timeout=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_program_that_is_not_haproxy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="names no HAProxy version"):
        haproxy_version(stub_haproxy(tmp_path, "echo nginx"))
    with pytest.raises(StartupError, match="cannot run"):
        haproxy_version(tmp_path / "absent")


def test_old_versions_spell_their_name_differently(tmp_path: Path) -> None:
    assert haproxy_version(stub_haproxy(tmp_path, "echo HA-Proxy version 1.8.30-1")) == "1.8.30"


def test_a_version_is_found_in_the_system_and_else_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (system := tmp_path / "system").mkdir()
    (cached := tmp_path / "cache/haproxy/3.2").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{system}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SPOAKIT_CACHE", str(tmp_path / "cache"))
    on_path = stub_haproxy(system, "echo HAProxy version 9.10.1-1")
    in_cache = stub_haproxy(cached, "echo HAProxy version 3.2.26-1")
    assert find_haproxy() == on_path
    assert find_haproxy("9.10") == find_haproxy("9.10.1") == on_path
    assert find_haproxy("9.1") is None
    assert find_haproxy("3.2") == in_cache
    assert find_haproxy("3.2", cache=tmp_path) is None


def test_the_fixture_starts_haproxy(haproxy: StartHAProxy) -> None:
    assert get(haproxy(CONFIG, variables={"GREETING": "fixture"})) == "fixture"
