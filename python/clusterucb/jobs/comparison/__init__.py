"""Internal. Run the job behind `clusterucb compare`."""
