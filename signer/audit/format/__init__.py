"""The format of the log: all that an independent verifier needs. Pure."""
