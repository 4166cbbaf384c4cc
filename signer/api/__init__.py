"""The gRPC edge: identity, limits, deadlines, errors; services are thin."""
