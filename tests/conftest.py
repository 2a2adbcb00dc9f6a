from __future__ import annotations

from hypothesis import settings

# The same examples on every machine, and no deadline: a slow machine is not a failure.
settings.register_profile("clusterucb", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("clusterucb")
