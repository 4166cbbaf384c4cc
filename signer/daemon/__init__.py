"""The process: composition root, what is served, the open audit log, status."""
