"""spoa-iprep: scores client addresses. For now the score is random, as in the C program."""

from spoakit.apps.iprep.agent import iprep

__all__ = ["iprep"]
