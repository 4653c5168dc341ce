from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.iprep_service import Service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.kill()
    print(service.log)  # shown if the test fails


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "list.txt"
    path.write_text("8.8.8.8\n")
    return path
