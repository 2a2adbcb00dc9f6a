"""Internal. Run the jobs behind the commands, one module each; `clusterucb.jobs.select` is the main job."""
