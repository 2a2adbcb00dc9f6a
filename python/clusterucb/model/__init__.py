"""Internal. Finds, loads and checks base models, adapters and optimiser states."""
