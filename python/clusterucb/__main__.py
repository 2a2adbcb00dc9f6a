"""``python -m clusterucb`` is the same as ``clusterucb``."""

from clusterucb.cli import main

main()
