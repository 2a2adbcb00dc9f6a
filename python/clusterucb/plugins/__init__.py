"""Strategies by name: what is installed, from this package and from plugins.

`load` finds everything afresh. A strategy that is found can be made from its name and options (`Strategies.make`).
"""

from clusterucb.plugins.describe import describe, import_path, renewed
from clusterucb.plugins.kinds import KINDS
from clusterucb.plugins.registry import Broken, Strategies, Strategy, load

__all__ = ["KINDS", "Broken", "Strategies", "Strategy", "describe", "import_path", "load", "renewed"]
