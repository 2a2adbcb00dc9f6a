"""``python -m clusterucb`` is the same as ``clusterucb``."""

from clusterucb.cli.commands import main

main()
