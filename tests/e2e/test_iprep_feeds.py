"""spoa-iprep as a program, with sources as they are shipped: HTTPS, a password, tar and gzip."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest

from spoakit.testing import EngineClient
from tests.support.certificates import make_authority, make_certificate
from tests.support.iprep_sources import write_database
from tests.support.programs import Start
from tests.support.reputation import CLI, LISTEN, command
from tests.support.web_server import Page, web_server

CONFIG = """
cache = "cache"
answers = {{ variables = ["ip_score", "ip_list", "ip_country"] }}
control = {{ path = "control.sock" }}

[[source]]
name = "list"
type = "list"
url = "{list}"
score = 10
tls = {{ ca-file = "authority.crt" }}

[[source]]
name = "country"
type = "mmdb"
url = "{country}"
field = "value"
provides = "country"
tls = {{ ca-file = "authority.crt" }}

[[source]]
name = "unverified"
type = "list"
url = "{list}?other"
category = "of the system's authorities"
"""


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[tuple[Page, Page]]:
    """Serve a list and a database over HTTPS, for whoever knows the password."""
    certificate = make_certificate(tmp_path, "server", make_authority(tmp_path))
    with ExitStack() as stack:
        yield (
            stack.enter_context(web_server(certificate)),
            stack.enter_context(web_server(certificate)),
        )


def archive(folder: Path) -> bytes:
    """Return a database in an archive, as MaxMind ships it."""
    write_database(folder / "GeoLite2.mmdb", {"203.0.114.0/24": "XX"})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as opened:
        opened.add(folder / "GeoLite2.mmdb", "GeoLite2_20260101/GeoLite2.mmdb")
    return archive.getvalue()


def test_feeds_come_over_https_with_a_password_which_is_shown_nowhere(
    start: Start, pages: tuple[Page, Page], tmp_path: Path
) -> None:
    blocked, country = pages
    blocked.body = b"203.0.114.7\n"
    country.body = archive(tmp_path)
    (tmp_path / "iprep.toml").write_text(
        CONFIG.format(
            list=blocked.url.replace("//", "//me:secret@"), country=f"{country.url}?key=secret"
        )
    )
    program = start(CLI, "-d", "--config", "iprep.toml", "-n", "1", *LISTEN)
    with EngineClient(port=int(program.address.rpartition(":")[2])) as engine:
        engine.hello()
        reply = engine.call("check-client-ip", ip_address("203.0.114.7"))
    assert reply == {"sess.ip_score": 10, "sess.ip_list": "list", "sess.ip_country": "XX"}
    assert [headers["Authorization"] for headers in blocked.asked] == ["Basic bWU6c2VjcmV0"]

    shown = command(tmp_path, "sources") + command(tmp_path, "sources", "--json")
    assert f"https://***@{blocked.url.removeprefix('https://')}" in shown
    assert f"{country.url}?***" in shown
    assert "the server's certificate does not verify: " in shown
    program.wait_for("source unverified: .*the server's certificate does not verify: ")
    assert "secret" not in shown + program.log
    assert program.stop() == 0
