import importlib.util
from importlib.machinery import ModuleSpec

import pytest

from spoakit.cli.options import form
from spoakit.spop import COMPILED


def test_the_form_agrees_with_the_hot_code() -> None:
    assert (form() == "not compiled") is not COMPILED


@pytest.mark.parametrize(
    ("origins", "expected"),
    [
        ({}, "not compiled"),
        ({"": "x.so"}, "compiled"),
        (
            {"": "x.so", "spoakit.spop._decode_cy": "x.py"},
            "compiled but for spoakit.spop._decode_cy",
        ),
    ],
)
def test_each_hot_module_counts(
    monkeypatch: pytest.MonkeyPatch, origins: dict[str, str], expected: str
) -> None:
    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        origin = origins.get(name, origins.get("", "x.py"))
        return ModuleSpec(name, None, origin=origin)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert form() == expected
