"""Internal. The command line."""
