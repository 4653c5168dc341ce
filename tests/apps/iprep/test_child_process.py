import subprocess
import sys

from tests.support.waiting import TIMEOUT

PROGRAM = f"""
import time
from spoakit.apps.iprep.child_process import end_with_input

end_with_input()
print("ready", flush=True)
time.sleep({2 * TIMEOUT})
"""


def test_a_process_ends_with_the_input_of_the_one_it_works_for() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(TIMEOUT) == 1
