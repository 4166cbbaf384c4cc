"""Programs beside the daemon: development, examination of a machine, measurement."""
