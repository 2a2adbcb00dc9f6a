"""Internal. The stages that several jobs share."""
