"""``signer dev``, but officers are shown another change than the one that they would sign."""

import sys

from signer.cli.main import main
from signer.officers.kinds.create_key import CreateKeyKind

LIE = ["+ facilities/01-002/keys/harmless/versions/1, PRE_ACTIVE: it does not sign yet"]

setattr(CreateKeyKind, "difference", lambda *_: LIE)  # noqa: B010
main(["dev", *sys.argv[1:]])
