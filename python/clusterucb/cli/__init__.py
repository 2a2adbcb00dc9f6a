"""Internal. Run the command line."""
