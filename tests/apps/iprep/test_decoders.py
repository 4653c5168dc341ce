"""The first decoding in a process by two threads at once, which crashed msgspec."""

import subprocess
import sys
from pathlib import Path

import pytest

from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.iprep.snapshot.builder import build_snapshot
from tests.support.iprep_sources import mine

pytestmark = pytest.mark.slow

# Forks a process for each attempt, since a first decoding happens once in a process; the interval
# makes threads take turns in the middle of it. Prints how the processes ended.
PROGRAM = """
import os, sys, threading
from pathlib import Path
{imports}

folder = Path(sys.argv[1])
ends = set()
for attempt in range({attempts}):
    process = os.fork()
    if not process:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.setswitchinterval(1e-6)
        barrier = threading.Barrier(2)
        good = []

        def run():
            barrier.wait()
            {call}
            good.append(True)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os._exit(0 if len(good) == 2 else 1)
    ends.add(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
print(sorted(ends))
"""
ATTEMPTS = 150
READERS = {
    "snapshot": (
        "from spoakit.apps.iprep.snapshot.manifest import read_snapshot",
        "assert read_snapshot(folder) is not None",
    ),
    "feed": (
        "from spoakit.apps.iprep.config.sources import FeedSettings\n"
        "from spoakit.apps.iprep.sources.feeds import Feed",
        "Feed('http://x', FeedSettings(), folder, lambda _: 0).state()",
    ),
    "drop": (
        "from spoakit.apps.iprep.sources.lists import DropReader",
        "DropReader().read(open(folder / 'drop', 'rb'))",
    ),
    "configuration": (
        "from spoakit.apps.iprep.config.loader import read_config",
        "read_config(folder / 'iprep.toml')",
    ),
    "mirror": (
        "from spoakit.apps.mirror.config.loader import read_config",
        "read_config(folder / 'mirror.toml')",
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_two_threads_may_decode_at_first(tmp_path: Path, reader: str) -> None:
    (tmp_path / "list").write_text("8.8.8.8\n")
    (tmp_path / "drop").write_text('{"cidr": "8.8.8.0/24"}\n{"type": "metadata", "records": 1}\n')
    (tmp_path / "iprep.toml").write_text("[[source]]\nname='a'\ntype='list'\npath='list'\n")
    (tmp_path / "mirror.toml").write_text("[[target]]\nurl = 'http://127.0.0.1:9'\n")
    build_snapshot(tmp_path, ReputationSettings((mine(tmp_path / "list"),)), None)
    imports, call = READERS[reader]
    program = PROGRAM.format(imports=imports, call=call, attempts=ATTEMPTS)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[0]\n"
