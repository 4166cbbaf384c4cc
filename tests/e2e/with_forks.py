"""Runs a program whose ``signer`` is a fork, of a server that begins here.

Forks are where their server is: in a namespace, in that one. Usage: python with_forks.py PROGRAM...
"""

import os
import subprocess
import sys

from tests.fork_server import fork_server

if __name__ == "__main__":
    environment = {**os.environ, "FORKS": str(fork_server().bin)}
    sys.exit(subprocess.run(sys.argv[1:], env=environment, check=False).returncode)
