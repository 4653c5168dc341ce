"""The configurations in examples/ are right for every supported HAProxy."""

from pathlib import Path

import pytest

from spoakit.testing.haproxy import HAProxy

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGURED = sorted(path.parent.name for path in EXAMPLES.glob("*/haproxy.cfg"))


@pytest.mark.parametrize("example", CONFIGURED)
def test_haproxy_accepts_the_example_without_a_warning(example: str, haproxy_binary: Path) -> None:
    folder = EXAMPLES / example
    haproxy = HAProxy(
        (folder / "haproxy.cfg").read_text(),
        files={path.name: path.read_text() for path in folder.glob("spoe.cfg")},
        binary=haproxy_binary,
    )
    assert haproxy.check() == ""
