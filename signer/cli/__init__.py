"""The command line: one file a command group, each a thin shell."""
