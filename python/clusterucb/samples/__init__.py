"""Internal. Files or objects become encoded samples in canonical order, and a list of what was refused."""
