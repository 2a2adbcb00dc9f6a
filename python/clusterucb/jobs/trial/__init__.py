"""Internal. Train on selections, and judge them on samples that had no part in them."""
