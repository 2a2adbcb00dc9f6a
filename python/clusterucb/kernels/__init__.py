"""Internal, except `clusterucb.kernels.torch_ops`.

The compute core: its specification in numpy, the compiled extensions, and `ops`, the one door to them.
"""
