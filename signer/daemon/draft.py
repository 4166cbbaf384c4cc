"""Whether the policy in an appliance's files is in force or a draft, without the daemon."""

from typing import NamedTuple

from signer.config.models import Config
from signer.errors import OperatorError
from signer.keys.database import sqlite_file
from signer.keys.registry import Registry


class FilesState(NamedTuple):
    """What a policy in files is: in force, or a draft.

    ``in_force`` is the SHA-256 of the policy in force as the registry has it, None before there
    is one; ``problem`` says why that is not known.
    """

    files: str
    in_force: str | None
    problem: str = ""

    @property
    def is_draft(self) -> bool:
        """Whether another policy is known to be in force."""
        return self.in_force not in (None, self.files)

    def __str__(self) -> str:
        if self.problem:
            return f"whether it is in force is not known: {self.problem}"
        if self.in_force is None:
            return "a draft: no policy is in force yet, the first start takes this one"
        if self.is_draft:
            return f"a draft, not in force: in force is {self.in_force}"
        return "in force"


def files_state(config: Config, files: str) -> FilesState:
    """Returns whether the policy with the SHA-256 ``files`` is in force, by the registry."""
    if (file := sqlite_file(config.registry)) is not None and not file.exists():
        return FilesState(files, None)
    try:
        with Registry.open(config.registry) as registry:
            return FilesState(files, registry.head().policy)
    except OperatorError as error:
        return FilesState(files, None, str(error))


def policy_in_registry(config: Config) -> bytes:
    """Returns the text of the policy that the registry has in force; raises OperatorError."""
    with Registry.open(config.registry) as registry:
        sha256 = registry.head().policy
        content = None if sha256 is None else registry.document(sha256)
    if content is None:
        raise OperatorError("no policy is in force yet: the first start puts the files in force")
    return content
