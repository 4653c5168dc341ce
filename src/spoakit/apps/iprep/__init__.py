"""spoa-iprep: scores client addresses, at random as the C program does, or by their reputation."""
