"""The access log: its lines, and writing them."""
