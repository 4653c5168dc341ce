"""Snapshots: what all sources came to at one time, and making them."""
