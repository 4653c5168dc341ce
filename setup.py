"""Build the compiled form of the hot code, if wanted.

``SPOAKIT_EXT`` is ``auto`` (compile if possible; a failure leaves the uncompiled
form, which behaves the same), ``require`` (a failure is an error) or ``disable``.
Everything else is in pyproject.toml.
"""

import os
from pathlib import Path
from threading import Lock
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HOT_MODULES = sorted(Path("src").rglob("*_cy.py"))


def extensions(mode: str) -> dict[str, Any]:
    from Cython.Build import cythonize

    one_at_a_time = Lock()

    class BuildInParallel(build_ext):
        """Has a C compiler run for each processor, and beside them Cython, which is one."""

        def finalize_options(self) -> None:
            super().finalize_options()
            self.parallel = self.parallel or os.cpu_count()

        def build_extension(self, ext: Extension) -> None:
            with one_at_a_time:
                directives = {"language_level": 3}
                [translated] = cythonize([ext], force=self.force, compiler_directives=directives)
            ext.sources = translated.sources
            super().build_extension(ext)

    return {
        "ext_modules": [
            Extension(
                ".".join(source.relative_to("src").with_suffix("").parts),
                [str(source)],
                optional=mode == "auto",
            )
            for source in HOT_MODULES
        ],
        "cmdclass": {"build_ext": BuildInParallel},
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
