"""Network side of a branch: it carries frames and holds neither data nor keys."""
