"""Internal. Run the job behind `clusterucb doctor`."""
