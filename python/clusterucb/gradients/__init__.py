"""Internal.

Computes per-sample gradients in passes of the model, and reduces them to norms, inner products and sketches.
"""
