"""The vectors of others, which lie beside the repository and not in it, and what they are for."""

from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "shared/vectors"

CERTIFICATES = "dgc-testdata"
COSE_EXAMPLES = "cose-examples"
DCC_SCHEMA = "dcc-schema"
_USES = {
    CERTIFICATES: "the EU's certificates: our bytes, what `signer verify` says, QR codes",
    COSE_EXAMPLES: "the COSE working group's examples: our bytes, what `signer verify` says",
    DCC_SCHEMA: "the published DCC schema: what we sign and refuse, beside it",
}


def left_out(folder: Path = FOLDER) -> Iterator[str]:
    """Yields what a run of the tests did not compare, because its vectors are not in the folder."""
    for name, use in _USES.items():
        if not (folder / name).is_dir():
            yield f"{use} ({folder / name} is missing)"
