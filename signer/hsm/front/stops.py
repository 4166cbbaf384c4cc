"""Why versions may not sign on a token, whoever stopped them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from signer.model import KeyVersion, Suspended


class Stops:
    """What is stopped, by key and by facility. Its pool's lock guards it."""

    def __init__(self) -> None:
        self.suspended = Suspended()
        self._inactive: dict[bytes, str] = {}  # as the registry says
        self._wrong: dict[bytes, str] = {}  # for this daemon's life

    @property
    def wrong(self) -> int:
        """How many keys had a wrong signature."""
        return len(self._wrong)

    def reason(self, version: KeyVersion) -> str:
        """Returns why a version may not sign; empty where it may."""
        cka_id = version.cka_id
        return (
            self._wrong.get(cka_id)
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
        """Stops a version for good: the HSM returned a wrong signature of it."""
        text = f"{version.name} is stopped: the HSM returned a wrong signature"
        self._wrong[version.cka_id] = text
