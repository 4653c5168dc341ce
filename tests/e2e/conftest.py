"""Every test here that asks for HAProxy runs with each of the supported versions."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from spoakit.testing.haproxy import find_haproxy
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.capture import Capture
from tests.support.haproxy_versions import CACHE, OF_PARTIAL, PARTIAL, REQUIRED, VERSIONS
from tests.support.mirror import Mirror
from tests.support.programs import Program, Serve, Start


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("e2e")
    left_out = [each for each in items if _is_left_out(each)]
    items[:] = [each for each in items if not _is_left_out(each)]
    config.hook.pytest_deselected(items=left_out)


def _is_left_out(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return False
    version = item.callspec.params.get("haproxy_binary")
    return version in PARTIAL and item.path.stem not in OF_PARTIAL


@pytest.fixture(scope="session", params=VERSIONS)
def haproxy_binary(request: pytest.FixtureRequest) -> Path:
    """The haproxy of one version; without it the test is skipped, for 2.6 it fails."""
    version: str = request.param
    if binary := find_haproxy(version, cache=CACHE):
        return binary
    missing = CACHE / "haproxy" / f"{version}.missing"
    reason = missing.read_text() if missing.exists() else "run scripts/fetch_haproxy.py"
    if version == REQUIRED:
        pytest.fail(f"HAProxy {version} is required: {reason}", pytrace=False)
    pytest.skip(f"HAProxy {version} is not available: {reason}")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run commands of spoakit's in tmp_path; what they have written is shown if the test fails."""
    programs: list[Program] = []

    def start(module: str, *arguments: str) -> Program:
        programs.append(Program(tmp_path, module, *arguments))
        programs[-1].wait_for("listening on ")
        return programs[-1]

    yield start
    for program in programs:
        program.kill()
        print(program.log)


@pytest.fixture
def serve(start: Start, tmp_path: Path) -> Serve:
    """Run agents of a source that the test gives."""

    def serve(source: str, *arguments: str, agents: tuple[str, ...] = ("tested",)) -> Program:
        (tmp_path / "agents.py").write_text(source)
        names = [f"agents:{name}" for name in agents]
        return start("spoakit.cli.spoakit", "run", *names, "-a127.0.0.1", "-p0", *arguments)

    return serve


@pytest.fixture
def mirror(start: Start, haproxy: StartHAProxy, tmp_path: Path) -> Mirror:
    """Run spoa-mirror behind HAProxy."""
    return Mirror(start, haproxy, tmp_path)


@pytest.fixture
def target() -> Iterator[Capture]:
    """What requests are copied to."""
    with Capture() as target:
        yield target
