"""Internal. One module for each command; `clusterucb.jobs.select` is the main job."""
