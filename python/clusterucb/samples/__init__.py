"""Internal. Turn files or objects into encoded samples in canonical order, and list the lines that are rejected."""
