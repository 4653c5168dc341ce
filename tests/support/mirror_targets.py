"""Targets of a mirror in its file, and their counters."""

import re
from contextlib import closing

import pytest

from spoakit.testing.haproxy import HAProxy
from tests.support.haproxy_versions import REQUIRED
from tests.support.programs import Program, ask, connect

# Where nothing depends on the version.
with_one_haproxy = pytest.mark.parametrize("haproxy_binary", [REQUIRED], indirect=True)
# Has a program look names up in a file of the test's.
RECEIVED = (
    *("not selected", "rate limited", "looped", "malformed", "body cut"),
    *("dropped", "responses", "failed"),
)


def table(name: str, address: str, *lines: str, scheme: str = "http") -> str:
    """Return a target's table of a configuration file."""
    return "\n".join(
        ("[[target]]", f"name = '{name}'", f"url = '{scheme}://{address}'", *lines, "")
    )


def figures(program: Program, name: str) -> dict[str, int]:
    """Return a target's counters as the program told them at its end."""
    [line] = re.findall(rf"INFO spoakit.mirror: {name}: (\d+ received, .*)", program.log)
    found = {name: int(number) for number, name in re.findall(r"(\d+) ([a-z ]+)", line)}
    assert found["received"] == sum(found[name] for name in RECEIVED)
    return found


def get_all(haproxy: HAProxy, *paths: str, **headers: str) -> list[str]:
    """Send GETs over one connection; return what went wrong according to HAProxy."""
    with closing(connect(haproxy)) as client:
        return [ask(client, path, headers)["x-error"] for path in paths]
