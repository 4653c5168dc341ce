"""Processes of spoa-iprep's service, without its command line."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import spoakit
from spoakit.apps.iprep.control.socket import ask
from spoakit.exceptions import SpoakitError
from tests.support.iprep_sources import put
from tests.support.processes import children_of
from tests.support.waiting import TIMEOUT, wait_until

PROGRAM = """
import sys
from spoakit.apps.iprep.agent import create_agent
from spoakit.apps.iprep.config.loader import read_config
from spoakit.apps.iprep.service import snapshots_folder, reloadable_settings
from spoakit.log_output import configure_logging
from spoakit.server import Hooks, Listen, ServerSettings, run

configure_logging()
live = reloadable_settings(lambda: read_config(sys.argv[1]))
with snapshots_folder(live.current) as folder:
    settings = ServerSettings(listen=Listen.at("127.0.0.1", 0), workers=int(sys.argv[2]))
    code = run([create_agent(live, folder)], settings, Hooks(reload=live.reload))
sys.exit(code)
"""


class Service:
    """The service as processes of its own, with what it leaves in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.temporary = root / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.control = str(root / "control")
        self._log = root / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, config: str, workers: int = 2) -> "Service":
        self.configure(config)
        source = str(Path(spoakit.__file__).parent.parent)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(self.root / "iprep.toml"), str(workers)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": source, "TMPDIR": str(self.temporary)},
                start_new_session=True,
            )
        return self

    def configure(self, config: str) -> None:
        put(self.root / "iprep.toml", f'control.path = "{self.control}"\n{config}')

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def folders(self) -> list[Path]:
        return list(self.temporary.iterdir())

    def ready(self) -> "Service":
        return self.wait_for("listening on")

    def wait_for(self, text: str, times: int = 1) -> "Service":
        wait_until(lambda: self.log.count(text) >= times, text)
        return self

    def ask(self, command: str, **request: Any) -> dict[str, Any]:
        return ask(self.control, {"command": command, **request})

    def score(self, address: str) -> int | None:
        """Return the score that whoever is the updater has; None where nobody is at present."""
        try:
            score: int = self.ask("lookup", address=address)["score"]
        except SpoakitError:
            return None
        return score

    def workers(self) -> list[int]:
        assert self.process is not None
        return children_of(self.process.pid)

    def updater(self) -> int:
        """Wait until a process has the updater's lock, and return it."""
        wait_until(self._find_keeper, "an updater")
        return self._keeper

    def _find_keeper(self) -> bool:
        folders = (*self.folders, self.root / "cache" / "snapshots")
        locks = [lock for folder in folders for lock in folder.glob("updater.lock")]
        inodes = {str(lock.stat().st_ino) for lock in locks}
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "FLOCK" in fields and fields[5].rpartition(":")[2] in inodes:
                self._keeper = int(fields[4])
                return True
        return False

    def signal(self, signum: int) -> None:
        assert self.process is not None
        self.process.send_signal(signum)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
