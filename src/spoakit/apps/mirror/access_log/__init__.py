"""Access log: its lines, and their writing."""

from typing import Final

LOG_NAME: Final = "access log"
"""Name of the log in errors and reports."""
