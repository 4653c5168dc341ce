"""Scores: from what sources say of an address to its score."""
