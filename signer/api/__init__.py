"""The gRPC edge: identity, limits, deadlines, errors; services are thin."""

import os

# gRPC's core reads this when it is first imported. It writes lines of its own to stderr, one for
# each failed handshake too: strangers could fill a log that is one JSON object a line. To see
# them while looking for a fault, set the variable yourself.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
