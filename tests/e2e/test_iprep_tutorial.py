"""What docs/iprep-tutorial.md says works as it is written, but for ports and a patient HAProxy."""

import re
import shlex
from pathlib import Path

from tests.e2e.programs import Start, wait_until
from tests.e2e.reputation import CLI, command, is_let_in

from spoakit.testing.haproxy import haproxy_version
from spoakit.testing.pytest_plugin import StartHAProxy

TUTORIAL = Path(__file__).parents[2] / "docs/iprep-tutorial.md"
MODE = """\
.if version_atleast(3.1)
    mode spop
.else
    mode tcp
.endif
"""


def block(start: str) -> str:
    """Return the block that starts with a text."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", TUTORIAL.read_text(), re.M | re.S)
    [found] = [text for text in blocks if text.startswith(start)]
    return str(found)


def without_time(shown: str) -> str:
    return re.sub(r"built .* ago", "built", shown).strip()


def test_a_listed_client_is_rejected_and_so_is_a_banned_one(
    start: Start, haproxy: StartHAProxy, haproxy_binary: Path, tmp_path: Path
) -> None:
    for name, text in (("blocked.txt", "# An address"), ("iprep.toml", "[policy]")):
        (tmp_path / name).write_text(block(text))
    program = start(CLI, *shlex.split(block("spoa-iprep"))[1:-1], "0")
    _, *lookup = block("$ spoa-iprep lookup").splitlines()
    shown = command(tmp_path, "lookup", "127.0.0.2")
    assert without_time(shown) == without_time("\n".join(lookup))

    spoe = block("[ip-reputation]").replace("100ms", "2s")
    if haproxy_version(haproxy_binary) < "3.1":
        spoe = spoe.replace(
            "    timeout", "    timeout hello 2s\n    timeout idle 30s\n    timeout"
        )
    running = haproxy(
        block("defaults")
        .replace(":8080", '"${FRONTEND}"')
        .replace("127.0.0.1:12345", '"${AGENT}"')
        .replace("    mode spop\n", MODE),
        # 100 ms are not always enough on a busy machine.
        files={"spoe.cfg": spoe},
        variables={"AGENT": program.address},
    )
    assert is_let_in(running, "127.0.0.1")
    assert not is_let_in(running, "127.0.0.2")

    ban, unban = re.findall("spoa-iprep (.*) --control", block("$ spoa-iprep ban"))
    assert command(tmp_path, *shlex.split(ban)).startswith("127.0.0.3 has a score of 0 until ")
    wait_until(lambda: not is_let_in(running, "127.0.0.3"), "the ban in the worker that is asked")
    assert command(tmp_path, *shlex.split(unban)) == "127.0.0.3 is banned no more\n"
    wait_until(lambda: all(is_let_in(running, "127.0.0.3") for _ in range(5)), "its end")
