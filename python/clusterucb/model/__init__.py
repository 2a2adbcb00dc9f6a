"""Internal. Base models, adapters and optimiser states: found, loaded and checked."""
