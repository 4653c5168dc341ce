from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.stand_in_service import Service


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    services = []

    def start(
        env: dict[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        descriptors: int | None = None,
        **settings: Any,
    ) -> Service:
        services.append(Service(tmp_path, env or {}, settings, stdout, stderr, descriptors))
        return services[-1]

    yield start
    for service in services:
        service.__exit__()
        print(service.log)  # shown if the test fails
