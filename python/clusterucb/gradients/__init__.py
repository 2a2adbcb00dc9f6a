"""Internal.

Passes of the model become per-sample gradients; these become norms, inner products and sketches.
"""
