"""Build the compiled form of the hot code, if wanted.

``SPOAKIT_EXT`` is ``auto`` (compile if possible; a failure leaves the uncompiled form, which
behaves the same), ``require`` (a failure is an error) or ``disable``. ``SPOAKIT_SYMBOLS`` keeps the
symbols that a profiler or a debugger needs. Everything else is in pyproject.toml.

A compiled module shadows its source, so whatever an earlier build has left and this one does not
make anew is removed first: a failure to compile must leave the new source, and not the old code.
"""

import os
import sys
from pathlib import Path
from threading import Lock
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HOT_MODULES = sorted(Path("src").rglob("*_cy.py"))
# Nearly all of a compiled module is its symbols.
STRIP = ["-Wl,-s"] if sys.platform == "linux" and not os.environ.get("SPOAKIT_SYMBOLS") else []


def remove_built(folder: Path, *, newer: bool) -> None:
    """Remove compiled modules from a folder: those older than their source, or the newer, too."""
    for source in HOT_MODULES:
        place = folder / source.relative_to("src").parent
        for built in [*place.glob(f"{source.stem}.*.so"), *place.glob(f"{source.stem}.so")]:
            if newer or built.stat().st_mtime < source.stat().st_mtime:
                built.unlink()


class BuildPython(build_py):
    """Copies the source, and takes no compiled module of an earlier build along."""

    def run(self) -> None:
        if self.editable_mode:
            remove_built(Path("src"), newer=os.environ.get("SPOAKIT_EXT") == "disable")
        remove_built(Path(self.build_lib), newer=True)
        super().run()


def extensions(mode: str) -> dict[str, Any]:
    from Cython.Build import cythonize

    one_at_a_time = Lock()

    class BuildInParallel(build_ext):
        """Has a C compiler run for each processor, and beside them Cython, which is one."""

        def finalize_options(self) -> None:
            super().finalize_options()
            self.parallel = self.parallel or os.cpu_count()

        def run(self) -> None:
            if self.inplace or self.editable_mode:
                remove_built(Path("src"), newer=False)
            remove_built(Path(self.build_lib), newer=False)
            super().run()

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
                extra_link_args=STRIP,
            )
            for source in HOT_MODULES
        ],
        "cmdclass": {"build_ext": BuildInParallel, "build_py": BuildPython},
    }


def arguments() -> dict[str, Any]:
    mode = os.environ.get("SPOAKIT_EXT", "auto")
    if mode not in ("auto", "require", "disable"):
        raise SystemExit(f"SPOAKIT_EXT={mode!r}: must be auto, require or disable")
    uncompiled = {"cmdclass": {"build_py": BuildPython}}
    if mode == "disable":
        return uncompiled
    try:
        return extensions(mode)
    except ImportError:
        if mode == "require":
            raise
        return uncompiled


setup(**arguments())
