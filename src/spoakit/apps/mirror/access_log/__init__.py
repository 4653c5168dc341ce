"""The access log: its lines, and writing them."""

from typing import Final

LOG_NAME: Final = "access log"
"""Its name in errors and reports."""
