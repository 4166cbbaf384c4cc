"""KeyService: the keys, and what the caller may do with them."""

import re

from signer.api import wire
from signer.api.guard import Caller
from signer.clock import Clock
from signer.errors import CallError, Reason, invalid
from signer.keys.wrapping_use import wrapping_uses
from signer.model import IDENTIFIER, Format, KeyName, KeyVersion, Role, parse_key_or_version
from signer.policy.decide import FORBIDDEN, may_use, visible_facilities
from signer.policy.usage import Usage
from signer.signing.request import Served, Snapshot
from signer.v1 import keys_pb2, keys_pb2_grpc

_NAME = re.compile(r"facilities/[^/]{1,64}/keys/[^/]{1,64}")
"""The form of the name in a page token, also that of the audit key."""


class KeyService(keys_pb2_grpc.KeyServiceServicer):
    """Answers from the snapshot that is served now."""

    def __init__(self, served: Served, usage: Usage, clock: Clock) -> None:
        self._served, self._usage = served, usage
        self._clock = clock

    def ListKeys(
        self, request: keys_pb2.ListKeysRequest, caller: Caller
    ) -> keys_pb2.ListKeysResponse:
        """Answers with one page of the keys that the caller may see; raises CallError."""
        snapshot = self._served.snapshot
        size = wire.page_size(request.page_size)
        names = _page(snapshot, caller, _prefix(request.parent), request.page_token, size + 1)
        page, room = [], wire.PAGE_BYTES
        for name in names[:size]:
            page.append(self._key(snapshot, name, caller))
            room -= page[-1].ByteSize()
            if room < 0:
                break
        return keys_pb2.ListKeysResponse(
            keys=page, next_page_token=page[-1].name if len(page) < len(names) else ""
        )

    def GetKey(self, request: keys_pb2.GetKeyRequest, caller: Caller) -> keys_pb2.GetKeyResponse:
        """Answers with one key; raises CallError."""
        snapshot = self._served.snapshot
        name, number = _parse(request.name)
        if number is not None:
            raise invalid("name", "names a version: use GetKeyVersion")
        _allow(snapshot, name, caller)
        if not snapshot.keys.versions(name):
            raise CallError(Reason.KEY_NOT_FOUND, f"{name} does not exist")
        return keys_pb2.GetKeyResponse(key=self._key(snapshot, name, caller))

    def GetKeyVersion(
        self, request: keys_pb2.GetKeyVersionRequest, caller: Caller
    ) -> keys_pb2.GetKeyVersionResponse:
        """Answers with one version; raises CallError."""
        snapshot = self._served.snapshot
        name, number = _parse(request.name)
        if number is None:
            raise invalid("name", "names a key: use GetKey")
        _allow(snapshot, name, caller)
        version = snapshot.keys.version(name, number)
        if version is None:
            raise CallError(Reason.KEY_NOT_FOUND, f"{name}/versions/{number} does not exist")
        shown = self._shown(snapshot, version, caller)
        shown.certification_request = version.request or ""
        return keys_pb2.GetKeyVersionResponse(key_version=shown)

    def ListKeyVersions(
        self, request: keys_pb2.ListKeyVersionsRequest, caller: Caller
    ) -> keys_pb2.ListKeyVersionsResponse:
        """Answers with the versions of one page of keys; raises CallError."""
        snapshot = self._served.snapshot
        size = wire.page_size(request.page_size)
        parent, one = request.parent, None
        if parent.count("/") == 3:
            one, _ = _parse(parent)
            parent = f"facilities/{one.facility}"
        names = _page(snapshot, caller, _prefix(parent), request.page_token, size + 1)
        if one is not None:
            _allow(snapshot, one, caller)
            names = [one] if snapshot.keys.versions(one) else []
        page, last, room = [], "", wire.PAGE_BYTES
        for name in names[:size]:
            versions = [self._shown(snapshot, v, caller) for v in snapshot.keys.versions(name)]
            page += versions
            last = str(name)
            room -= sum(version.ByteSize() for version in versions)
            if room < 0:
                break
        more = bool(names) and last != str(names[-1])
        return keys_pb2.ListKeyVersionsResponse(
            key_versions=page, next_page_token=last if more else ""
        )

    def ListWrappingKeys(
        self, _request: keys_pb2.ListWrappingKeysRequest, caller: Caller
    ) -> keys_pb2.ListWrappingKeysResponse:
        """Answers with all wrapping keys; raises CallError."""
        if not _sees_tokens(caller):
            raise CallError(
                Reason.POLICY_DENIED,
                "only officers, auditors and operators see wrapping keys",
                {"rule": FORBIDDEN.rule},
            )
        snapshot = self._served.snapshot
        uses = wrapping_uses(snapshot.wrapping_keys, snapshot.keys)
        return keys_pb2.ListWrappingKeysResponse(wrapping_keys=map(wire.wrapping_key, uses))

    def _shown(
        self, snapshot: Snapshot, version: KeyVersion, caller: Caller
    ) -> keys_pb2.KeyVersion:
        """Returns a version as the caller may see it: issuers do not see where its key is."""
        now = self._clock.now()
        primary = snapshot.keys.primary(version.key, now)
        shown = wire.key_version(version, version.state_at(now), primary=version is primary)
        shown.suspension = snapshot.suspended.reason(version.key.facility)
        key, terms = version.key, snapshot.policy.terms_of(version.key)
        shown.signatures_used = self._usage.signed(key.facility, key.key, version.number)
        shown.lifetime_signatures = (terms and terms.lifetime_signatures) or 0
        if _sees_tokens(caller):
            shown.token = version.token
            if version.wrapped is not None:
                shown.wrapping.wrapping_key = version.wrapped.wrapping_key
                shown.wrapping.mechanism = version.wrapped.mechanism
            for token, cka_id in version.placements:
                shown.placements.add(token=token, cka_id=cka_id)
        return shown

    def _key(self, snapshot: Snapshot, name: KeyName, caller: Caller) -> keys_pb2.Key:
        now = self._clock.now()
        primary = snapshot.keys.primary(name, now)
        key = keys_pb2.Key(
            name=str(name),
            algorithm=f"ALGORITHM_{snapshot.keys.versions(name)[0].algorithm.name}",
            primary=self._shown(snapshot, primary, caller) if primary else None,
        )
        terms = may_use(snapshot.policy, caller.principal, name)
        if terms is not None:
            allowed = [f"FORMAT_{each.name}" for each in Format if each in terms.formats]
            key.MergeFrom(keys_pb2.Key(formats=allowed, max_batch_items=terms.max_batch_items))
            key.needs_cosignatures = terms.cosigning is not None
            left = self._usage.remaining(terms.facility, terms.quotas, now)
            for quota, remaining in zip(terms.quotas, left, strict=True):
                key.quotas.add(
                    limit=quota.limit, window_seconds=quota.window_seconds, remaining=remaining
                )
        return key


def _sees_tokens(caller: Caller) -> bool:
    return bool(caller.roles - {Role.ISSUER})


def _parse(name: str) -> tuple[KeyName, int | None]:
    try:
        return parse_key_or_version(name)
    except ValueError as error:
        raise invalid("name", str(error)) from None


def _allow(snapshot: Snapshot, name: KeyName, caller: Caller) -> None:
    visible = visible_facilities(snapshot.policy, caller.principal)
    if visible is not None and name.facility not in visible:
        raise CallError(
            Reason.POLICY_DENIED,
            "no rule of the policy lets this principal see this key",
            {"rule": FORBIDDEN.rule},
        )


def _page(snapshot: Snapshot, caller: Caller, prefix: str, after: str, limit: int) -> list[KeyName]:
    """Returns the first names after ``after``, the name in a token, that the caller may see."""
    if after and not _NAME.fullmatch(after):
        raise wire.bad_token()
    visible = visible_facilities(snapshot.policy, caller.principal)
    if visible is None:
        return snapshot.keys.names(prefix, after, limit)
    names: list[KeyName] = []
    for parent in sorted(f"facilities/{facility}/" for facility in visible):
        if parent.startswith(prefix) and len(names) < limit:
            names += snapshot.keys.names(parent, after, limit - len(names))
    return names


def _prefix(parent: str) -> str:
    if not parent:
        return ""
    head, _, facility = parent.partition("/")
    if head != "facilities" or not IDENTIFIER.fullmatch(facility):
        raise invalid("parent", "must be facilities/{facility} or empty")
    return f"{parent}/"
