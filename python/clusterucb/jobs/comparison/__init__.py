"""Internal. The job behind `clusterucb compare`."""
