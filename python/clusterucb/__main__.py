"""``python -m clusterucb`` is the same as ``clusterucb``."""

from clusterucb.cli.main import main

main()
