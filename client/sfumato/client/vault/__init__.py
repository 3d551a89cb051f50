"""Data side of a branch: it answers typed questions and has no network."""
