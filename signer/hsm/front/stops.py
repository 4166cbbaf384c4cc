"""What may not sign on a token: what officers or the registry stopped, and wrong signatures."""

from collections.abc import Iterable, Mapping

from signer.model import KeyVersion, Placement, Suspended


class Stops:
    """The versions and facilities that may not sign on a token, with the reasons."""

    def __init__(self) -> None:
        self.suspended = Suspended()
        # By where the key was made: on another token it may have another CKA_ID.
        self.wrong: dict[Placement, str] = {}  # until the daemon ends
        self._inactive: dict[Placement, str] = {}  # according to the registry

    def reason(self, version: KeyVersion) -> str:
        """Returns why a version may not sign; empty where it may."""
        return self.wrong.get(_made_at(version)) or self.everywhere(version)

    def everywhere(self, version: KeyVersion) -> str:
        """Returns why a version may sign on no token; empty where it may."""
        inactive = self._inactive.get(_made_at(version))
        return inactive or self.suspended.reason(version.key.facility)

    def distrusts(self, version: KeyVersion) -> bool:
        """Returns whether the HSM has returned a wrong signature of a version here."""
        return bool(self.wrong) and _made_at(version) in self.wrong

    def stop(self, versions: Mapping[KeyVersion, str]) -> None:
        """Stops versions, each for its reason."""
        for version, text in versions.items():
            self._inactive[_made_at(version)] = text or f"{version.name} is stopped"

    def resume(self, versions: Iterable[KeyVersion]) -> None:
        """Lets versions sign again; one with a wrong signature stays stopped."""
        for version in versions:
            self._inactive.pop(_made_at(version), None)

    def distrust(self, version: KeyVersion) -> None:
        """Stops a version here until the daemon ends: the HSM returned a wrong signature of it."""
        text = f"{version.name} is stopped: the HSM returned a wrong signature"
        self.wrong[_made_at(version)] = text


def _made_at(version: KeyVersion) -> Placement:
    return Placement(version.token, version.cka_id)
