"""clusterucb: gradient-based selection of fine-tuning data under a budget."""

__version__ = "0.1.0"
