"""Internal, but for `clusterucb.kernels.torch_ops`.

The compute core: its specification, the compiled extensions and their one door.
"""
