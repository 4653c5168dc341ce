"""Build the compiled form of the hot code, if wanted.

``SPOAKIT_EXT`` is ``auto`` (compile if possible; a failure leaves the uncompiled
form, which behaves the same), ``require`` (a failure is an error) or ``disable``.
Everything else is in pyproject.toml.
"""

import os
from pathlib import Path
from typing import Any

from setuptools import setup

HOT_MODULES = sorted(Path("src").rglob("*_cy.py"))


def extensions(mode: str) -> dict[str, Any]:
    from Cython.Distutils.build_ext import build_ext
    from Cython.Distutils.extension import Extension

    return {
        "ext_modules": [
            Extension(
                ".".join(source.relative_to("src").with_suffix("").parts),
                [str(source)],
                optional=mode == "auto",
                cython_directives={"language_level": 3},
            )
            for source in HOT_MODULES
        ],
        "cmdclass": {"build_ext": build_ext},
    }


def arguments() -> dict[str, Any]:
    mode = os.environ.get("SPOAKIT_EXT", "auto")
    if mode not in ("auto", "require", "disable"):
        raise SystemExit(f"SPOAKIT_EXT={mode!r}: must be auto, require or disable")
    if mode == "disable":
        return {}
    try:
        return extensions(mode)
    except ImportError:
        if mode == "require":
            raise
        return {}


setup(**arguments())
