"""The kinds of documents that are read: one that is given in the place of another is named."""

from collections.abc import Container
from enum import Enum
from pathlib import Path

from signer.config.strict_yaml import refuse
from signer.errors import Violation


class Kind(Enum):
    """A kind of document: what it is, the members that show it, and where it is given."""

    DAEMON = ("a daemon's configuration", ("listen", "tokens"), "give it with --config")
    CLIENT = ("a client file", ("address", "certificate"), "give it with --client")
    POLICY = ("a policy", ("profiles", "facilities"), "`policy` in signer.yaml names it")

    def of(self, document: Container[str]) -> bool:
        """Whether a document is of this kind, by its members."""
        return all(name in document for name in self.value[1])


def refuse_others(document: Container[str], path: Path, wanted: Kind) -> None:
    """Raises ConfigError, with one line, for a document of another kind than the ``wanted`` one.

    All its members would be unknown, and all wanted ones missing.
    """
    for kind in Kind:
        if kind is not wanted and kind.of(document) and not wanted.of(document):
            what, _, where = kind.value
            text = f"is {what}, and {wanted.value[0]} is expected here: {where}"
            refuse(path, [Violation("", text)])
