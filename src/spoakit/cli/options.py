"""Basis of the commands: their streams, exit codes, errors and version."""

import os
import sys
from typing import Final

import spoakit
from spoakit.compilation import form
from spoakit.exceptions import ConfigurationError, SpoakitError, StartupError
from spoakit.server import ListenTls, end_logfile

EX_FAILED: Final = 1
"""Exit code of a command that failed."""

EX_USAGE: Final = 64
"""Exit code for a wrong command line or configuration, as in sysexits.h and the C programs."""


def open_standard_streams() -> None:
    """Open standard streams that the caller has closed, on /dev/null.

    Otherwise the next files and sockets would get their numbers, and text for standard output or
    standard error would be written to them.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))


def show(text: str) -> None:
    """Print the output of a command; ignore a reader that has closed its pipe, such as head."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Buffered text would be written at exit, and fail again.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def show_errors(text: str) -> None:
    """Print each line of a text as an error to standard error."""
    for line in text.splitlines():
        sys.stderr.write(f"ERROR: {line}\n")


def report_error(error: SpoakitError) -> int:
    """Print the error that ends a command, also to its logfile; return the exit code."""
    end_logfile(str(error))
    show_errors(str(error))
    return EX_FAILED if isinstance(error, StartupError) else EX_USAGE


def tls_settings(certificate: str | None, key: str | None, ca: str | None) -> ListenTls | None:
    """Return the settings of --tls-cert, --tls-key and --tls-ca; None for a plain port.

    Raises:
        ConfigurationError: a key or an authority is given without a certificate.
    """
    if certificate is not None:
        return ListenTls(certificate, key, ca)
    for option, value in (("--tls-key", key), ("--tls-ca", ca)):
        if value is not None:
            raise ConfigurationError(f"{option} {value!r} needs --tls-cert")
    return None


def version() -> str:
    """Return the version and the form in use: "0.1.0 (compiled)"."""
    return f"{spoakit.__version__} ({form()})"
