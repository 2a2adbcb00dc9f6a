"""Internal. The page of a run: what it needs from the job, and how it is made from the run folder alone."""
