"""Internal. Who computes passes: this process, or workers on other devices and machines."""
