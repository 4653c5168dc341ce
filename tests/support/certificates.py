"""Certificates for one test, made by openssl in its folder; none outlives the test."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Pem:
    """A certificate, its key, and both in one file, as HAProxy wants them."""

    certificate: Path
    key: Path
    both: Path


def make_authority(folder: Path, name: str = "authority") -> Pem:
    """Make an authority, which signs itself."""
    # Python 3.13 and later want its keyUsage (RFC 5280, 4.2.1.3).
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    return _make(folder, name, *usage, "-addext", "basicConstraints=critical,CA:TRUE")


def make_certificate(
    folder: Path, name: str, authority: Pem, owners: str = "IP:127.0.0.1,DNS:localhost"
) -> Pem:
    """Make a certificate for its owners, signed by an authority."""
    signing = ("-CA", str(authority.certificate), "-CAkey", str(authority.key))
    names = ("-addext", f"subjectAltName={owners}")
    return _make(folder, name, *signing, *names, "-addext", "basicConstraints=CA:FALSE")


def _make(folder: Path, name: str, *options: str) -> Pem:
    made = Pem(folder / f"{name}.crt", folder / f"{name}.key", folder / f"{name}.pem")
    files = ("-out", str(made.certificate), "-keyout", str(made.key))
    subprocess.run(
        ["openssl", "req", "-x509", *_KEY, "-subj", f"/CN={name}", "-days", "2", *files, *options],
        check=True,
        capture_output=True,
    )
    made.both.write_bytes(made.certificate.read_bytes() + made.key.read_bytes())
    return made
