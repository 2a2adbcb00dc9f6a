"""Internal. Run the stages that several jobs share."""
