"""Internal. The job behind `clusterucb doctor`."""
