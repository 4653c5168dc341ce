"""The table of addresses: one mapped file that all workers share."""
