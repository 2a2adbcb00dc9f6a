"""Find the installed strategies by name, from this package and from plugins.

`load` looks for all of them each time it is called. `Strategies.make` constructs one from its name and options.
"""

from clusterucb.plugins.describe import describe, import_path, is_description, packages, renewed
from clusterucb.plugins.kinds import KINDS
from clusterucb.plugins.registry import Strategies, load
from clusterucb.plugins.strategy import Broken, Strategy

__all__ = [
    "KINDS",
    "Broken",
    "Strategies",
    "Strategy",
    "describe",
    "import_path",
    "is_description",
    "load",
    "packages",
    "renewed",
]
