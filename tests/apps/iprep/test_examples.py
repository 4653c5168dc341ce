"""Examples of spoa-iprep with other programs: their files are read, and their commands run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path

import pytest

import spoakit
from spoakit.apps.iprep.config.loader import read_config
from tests.support.iprep_service import Service
from tests.support.web_server import web_server

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[3] / "examples" / "ip-reputation"
ACTION = EXAMPLES / "fail2ban" / "action.d" / "spoa-iprep.conf"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)}


class Action:
    """Action of fail2ban: its tags are replaced, and a shell runs it, as fail2ban does."""

    def __init__(self, path: Path, **tags: str) -> None:
        parser = RawConfigParser()
        parser.read(path)
        self._definition = dict(parser["Definition"])
        self._tags = {**parser["Init"], **tags}

    def run(self, name: str, **tags: str) -> "subprocess.CompletedProcess[str]":
        command = self._definition[name]
        for tag, value in {**self._tags, **tags}.items():
            command = command.replace(f"<{tag}>", value)
        assert "<" not in command.replace("</", "")
        return subprocess.run(
            ["/bin/sh", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, timeout=30
        )


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.kill()


def test_fail2ban_bans_and_ends_bans(service: Service) -> None:
    service.start('bans.path = "bans"\n', workers=1).ready()
    action = Action(
        ACTION,
        name="sshd",
        iprep=f"{sys.executable} -m spoakit.cli.iprep",
        control=f"--control {service.control}",
    )
    for address in ("192.0.2.7", "2001:db8::7"):
        assert action.run("actioncheck").returncode == 0
        ended = action.run("actionban", ip=address, bantime="600")
        assert (ended.returncode, ended.stderr) == (0, "")
        [ban] = service.ask("bans")["bans"]
        assert (ban["address"], ban["score"], ban["reason"]) == (address, 0, "fail2ban sshd")
        assert action.run("actionunban", ip=address, bantime="600").returncode == 0
        assert service.ask("bans")["bans"] == []
        # It has ended by itself, as bans of spoa-iprep do.
        assert action.run("actionunban", ip=address, bantime="600").returncode == 0
    assert service.stop() == 0
    ended = action.run("actionban", ip="192.0.2.7", bantime="600")
    assert ended.returncode == 1
    assert "is it running" in ended.stderr
    assert action.run("actioncheck").returncode != 0


def test_decisions_of_crowdsec_are_a_source(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_server() as page:
        page.body = b"8.8.8.8\n9.9.9.0/24\n"
        monkeypatch.setenv("CROWDSEC_URL", page.url)
        config = (EXAMPLES / "crowdsec" / "iprep.toml").read_text()
        service.start(config, workers=1).ready()
        found = service.ask("lookup", address="9.9.9.9")
        assert (found["score"], found["observed"]) == (100, [{"source": "crowdsec", "score": 0}])
        page.body = b"8.8.8.8\n"
        assert service.ask("update", source="crowdsec")["entries"] == 1
        assert service.stop() == 0


def test_decisions_that_cscli_writes_are_a_source(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions = tmp_path / "decisions.csv"
    decisions.write_text(
        "id,source,ip,reason,action,country,as,events_count,expiration,simulated,alert_id\n"
        "1,crowdsec,Ip:8.8.8.8,crowdsecurity/ssh-bf,ban,US,15169 GOOGLE,6,3h28m24s,false,1\n"
        "2,crowdsec,Range:9.9.9.0/24,crowdsecurity/http-crawl-non_statics,ban,,,6,1h,false,2\n"
        "3,crowdsec,Ip:9.9.8.1,crowdsecurity/ssh-bf,captcha,,,6,1h,false,3\n"
        "4,crowdsec,Ip:9.9.8.2,crowdsecurity/ssh-bf,ban,,,6,1h,true,4\n"
        '5,cscli,Ip:2620:fe::9,"manual ban, by hand",ban,,,1,1h,false,5\n'
    )
    monkeypatch.setenv("CROWDSEC_DECISIONS", str(decisions))
    config = (EXAMPLES / "crowdsec" / "decisions.toml").read_text()
    service.start(config.replace('mode = "observe"\n', ""), workers=1).ready()
    scores = {
        address: service.ask("lookup", address=address)["score"]
        for address in ("8.8.8.8", "9.9.9.200", "9.9.8.1", "9.9.8.2", "2620:fe::9", "9.9.7.1")
    }
    assert list(scores.values()) == [0, 30, 100, 100, 0, 100]
    assert service.stop() == 0


def test_without_its_variable_the_source_is_that_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "iprep.toml").write_text((EXAMPLES / "crowdsec" / "iprep.toml").read_text())
    [source] = read_config(tmp_path / "iprep.toml").sources
    assert source.url == "http://127.0.0.1:41412/security/blocklist"
