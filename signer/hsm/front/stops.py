"""What may not sign on a token, and why."""

from collections.abc import Iterable, Mapping

from signer.model import KeyVersion, Suspended


class Stops:
    """The versions and facilities that may not sign on a token, with the reasons."""

    def __init__(self) -> None:
        self.suspended = Suspended()
        self.wrong: dict[bytes, str] = {}  # until the daemon ends
        self._inactive: dict[bytes, str] = {}  # according to the registry

    def reason(self, version: KeyVersion) -> str:
        """Returns why a version may not sign; empty where it may."""
        cka_id = version.cka_id
        return (
            self.wrong.get(cka_id)
            or self._inactive.get(cka_id)
            or self.suspended.reason(version.key.facility)
        )

    def stop(self, versions: Mapping[KeyVersion, str]) -> None:
        """Stops versions, each for its reason."""
        for version, text in versions.items():
            self._inactive[version.cka_id] = text or f"{version.name} is stopped"

    def resume(self, versions: Iterable[KeyVersion]) -> None:
        """Lets versions sign again; one with a wrong signature stays stopped."""
        for version in versions:
            self._inactive.pop(version.cka_id, None)

    def distrust(self, version: KeyVersion) -> None:
        """Stops a version until the daemon ends: the HSM returned a wrong signature of it."""
        text = f"{version.name} is stopped: the HSM returned a wrong signature"
        self.wrong[version.cka_id] = text
