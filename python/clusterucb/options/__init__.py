"""Internal. Define every option once, for Python, the command line and the configuration file."""
