"""spoa-iprep: scores client addresses. For now the score is random, as in the C program."""
