"""Select inside a training run: every so often, with the live weights and the live optimiser's moments."""

from clusterucb.training.reselect import Reselect
from clusterucb.training.rounds import Round
from clusterucb.training.trainer import reselecting

__all__ = ["Reselect", "Round", "reselecting"]
