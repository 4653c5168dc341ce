"""Processes that work for another one, and end with it."""

import os
import sys
import threading


def end_with_input() -> None:
    """End this process when its standard input does: nobody waits for it any more."""
    threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)
