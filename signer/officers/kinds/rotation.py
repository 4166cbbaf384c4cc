"""The kind rotate: new versions of one key or of thousands, under one approval.

New versions are created and, if an authority is named, wait for their certificates. Each is
activated at the planned time, or as soon as it has its certificate. The version before it
signs for the overlap and is then deactivated by the clock. Every step finds what an earlier
attempt did.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

from cryptography import x509
from pydantic import Field

from signer.errors import OperatorError
from signer.keys import lifecycle
from signer.keys.lifecycle import NewKey, cka_id_of
from signer.keys.writing import Change, ChangedMeanwhileError
from signer.model import KeyName, KeyState, KeyVersion
from signer.officers.kinds.base import (
    Details,
    Effects,
    Moment,
    OperationKind,
    Pair,
    Span,
    Work,
    found_problems,
    shortened,
)
from signer.officers.kinds.certificates_import import (
    activation_problems,
    certificate_problems,
    chain_problems,
    decoded,
    encoded,
    issuer_problems,
    read_any,
)
from signer.officers.kinds.create_key import (
    BATCH,
    hcert_terms,
    make,
    next_version,
    save_made,
    subject_problems,
)
from signer.officers.kinds.operation_context import OperationContext, OperationError, utc
from signer.officers.kinds.storing import is_stored, place_text, storage_problems, wrapping_key_of
from signer.officers.rotation_plan import Step, parse_plan, plan_text
from signer.text import count, duration
from signer.x509 import certified, spki_of

MAX_KEYS = 50_000


class Rotate(Details):
    """Times in seconds, 0: none. ``plan_sha256`` names the plan, worked out from the keys.

    ``subject`` is the template of the certification requests' subjects, with {facility},
    {key} and {version}; ``issuers`` are the certifying authority and those above it.
    """

    activate_at: Moment
    overlap_seconds: Span
    sign_for_seconds: Span = 0
    destroy_after_seconds: Span = 0
    subject: str = ""
    issuers: list[str] = Field(default_factory=list)
    token: str = ""
    plan_sha256: str = ""
    keys: int = 0
    wrapping_key: str = ""


def _check_issuers(issuers: Sequence[str], now: float) -> None:
    """Raises OperationError if the first one cannot certify keys, or the chain does not hold."""
    if issuers:
        authority, *above = map(decoded, issuers)
        if wrong := issuer_problems(authority, above, now):
            raise OperationError(*wrong)


class RotateKind(OperationKind[Rotate]):
    """Replaces the primary versions of keys without an interruption of signing."""

    name = "rotate"
    details = Rotate
    names = "plan_sha256"

    def complete(self, details: Rotate, context: OperationContext) -> Rotate:
        plan = plan_of(context.attachment, context)
        content = plan_text(plan)
        token, policy = context.token(details.token), context.policy.policy
        return details.model_copy(
            update={
                "issuers": list(map(encoded, details.issuers)),
                "token": token,
                "wrapping_key": wrapping_key_of([s.key for s in plan], token, policy, context),
                "plan_sha256": hashlib.sha256(content).hexdigest(),
                "keys": len(plan),
            }
        )

    def problems(self, details: Rotate, context: OperationContext) -> list[str]:
        problems = [
            *context.token_problems(details.token),
            *storage_problems(details.wrapping_key, details.token, context),
            *found_problems(lambda: _check_issuers(details.issuers, context.now)),
            *found_problems(lambda: subject_of(details.subject, KeyName("f", "k"), 1)),
        ]
        if bool(details.issuers) != bool(details.subject):
            problems.append("subject and issuers go together: certificates need both")
        return problems

    def documents(self, details: Rotate, context: OperationContext) -> list[bytes]:
        plan = plan_of(context.attachment, context)
        content = plan_text(plan)
        if (hashlib.sha256(content).hexdigest(), len(plan)) != (details.plan_sha256, details.keys):
            raise OperationError("the keys have changed since this was prepared: prepare it again")
        for step in plan:
            subject_of(details.subject, step.key, step.new)
        missing = [
            f"{step.key} signs HCERT and needs a certificate: name subject and issuers"
            for step in plan
            if hcert_terms(step.key, context) and not details.issuers
        ]
        if missing:
            raise OperationError(*missing)
        return [content]

    def difference(self, details: Rotate, context: OperationContext) -> list[str]:
        place = place_text(details.wrapping_key, details.token)
        lines = [
            f"+ the next version of {count(details.keys, 'key')} {place}",
            f"~ it signs from {utc(details.activate_at)}"
            + (f" for {duration(details.sign_for_seconds)}" if details.sign_for_seconds else ""),
            f"~ the version before it signs for {duration(details.overlap_seconds)} more, if named",
        ]
        if details.destroy_after_seconds:
            lines.append(
                f"~ it may be destroyed {duration(details.destroy_after_seconds)} after that"
                " (an operation of its own)"
            )
        if details.issuers:
            issuer = decoded(details.issuers[0]).subject.rfc4514_string()
            lines.append(f"  certificates come from {issuer}, for {details.subject}")
            if details.keys > 1 and not re.search(r"\{(facility|key)\}", details.subject):
                lines.append(f"! the requests of all {details.keys} keys name the same subject")
        content = context.document(details.plan_sha256)
        if content is None:
            return lines
        steps = [
            f"~ {step.key}: versions/{step.old} is followed by versions/{step.new}"
            for step in read_plan(content)
        ]
        return [*lines, *shortened(steps, "key")]

    def fits(self, details: Rotate, pair: Pair) -> bool:
        content = pair.once("plan", lambda: pair.document(details.plan_sha256) or b"[]")
        steps = pair.once(
            "steps", lambda: {s.key: (i, s) for i, s in enumerate(read_plan(content))}
        )
        version = pair.version
        if (found := steps.get(version.key)) is None:
            return False
        index, step = found
        if pair.index is None:
            return pair.existed and version.number == step.old
        # Each key pair is for its own step: two of a plan must not change places.
        asked = (step.new, index, step.algorithm, details.token)
        found_as = (version.number, pair.index, version.algorithm, version.token)
        if found_as != asked or not is_stored(version, details.wrapping_key):
            return False
        if version.certificate is None or not pair.certified:
            return True
        issuer, certificate = decoded(details.issuers[0]), read_any(version.certificate)
        return not chain_problems(certificate, [issuer], pair.times[0])

    def execute(self, details: Rotate, work: Work) -> Effects:
        plan = read_plan(work.context.document(details.plan_sha256) or b"[]")
        self._make(plan, details, work)
        # Read again: creating thousands of keys takes minutes.
        context = work.current_context()
        stopped = {step.key: text for step in plan if (text := _stopped_since(step, context))}
        goes_on = [step for step in plan if step.key not in stopped]
        versions = [context.version(f"{step.key}/versions/{step.new}") for step in goes_on]
        waits = [bool(details.issuers) and _waits(version) for version in versions]
        waiting = sum(waits)
        planned = zip(goes_on, versions, waits, strict=True)
        ready = [(step, version) for step, version, wait in planned if not wait]
        skipped = [*stopped.values(), *self._activate(ready, details, context, work)]
        work.progress(2 * len(plan) - waiting - len(skipped), 2 * len(plan))
        if skipped:
            raise OperatorError("; ".join(shortened(skipped, "key")))
        if waiting:
            return Effects(
                waiting=f"{waiting} of {count(len(plan), 'version')} wait for certificates"
            )
        return Effects(result={"key_versions": [version.name for version in versions[:100]]})

    def _make(self, plan: Sequence[Step], details: Rotate, work: Work) -> None:
        """Creates the missing versions."""
        missing = []
        for index, step in enumerate(plan):
            existing = work.context.state.keys.version(step.key, step.new)
            if existing is None:
                if not _stopped_since(step, work.context):
                    missing.append((index, step))
            elif existing.cka_id != cka_id_of(work.id, index):
                raise OperatorError(f"another operation has created {existing.name} meanwhile")
        if not missing:
            return

        def made() -> Iterator[KeyVersion]:
            for index, step in missing:
                work.check_running()
                new = NewKey(step.key, step.algorithm, step.bits, details.wrapping_key)
                subject = details.subject and subject_of(details.subject, step.key, step.new)
                yield make(admin, new, step.new, index=index, subject=subject, work=work)

        with work.admin(details.token) as admin:
            save_made(made(), work, len(plan), 2 * len(plan), len(plan) - len(missing))

    def _activate(
        self,
        ready: Iterable[tuple[Step, KeyVersion]],
        details: Rotate,
        context: OperationContext,
        work: Work,
    ) -> list[str]:
        """Activates the versions for their time; returns why some of them are not activated."""
        skipped: list[str] = []
        batch: list[list[Change]] = []
        for step, version in ready:
            state = version.state_at(context.now)
            if state is not KeyState.PRE_ACTIVE or version.activate_at:  # activated, or ended
                old = context.state.keys.version(step.key, step.old)
                if state is KeyState.ACTIVE and old is not None and old.ends_at is None:
                    batch.append(self._retire(step, context.now, details, context))
                continue
            at = max(float(details.activate_at), context.now)
            until = at + details.sign_for_seconds if details.sign_for_seconds else None
            if problems := activation_problems(version, at, until, context):
                skipped += problems
                continue
            activated = lifecycle.activate(version, at, until, context.now)
            retired = self._retire(step, at, details, context)
            batch.append([Change(version, activated), *retired])
            if len(batch) >= BATCH:
                skipped += _written(batch, work)
                batch = []
        return skipped + _written(batch, work)

    def _retire(
        self, step: Step, at: float, details: Rotate, context: OperationContext
    ) -> list[Change]:
        """Ends the old version after the overlap, unless it ends earlier anyway."""
        old = context.state.keys.version(step.key, step.old)
        end = at + details.overlap_seconds
        if old is None or old.state_at(context.now) is not KeyState.ACTIVE:
            return []
        if old.ends_at is not None and old.ends_at <= end:
            end = old.ends_at
        destroy_at = end + details.destroy_after_seconds if details.destroy_after_seconds else None
        return [Change(old, lifecycle.deactivate(old, end, context.now, destroy_at))]


def _stopped_since(step: Step, context: OperationContext) -> str:
    """Returns why a rotation does not go on with a key; empty if it does.

    An officer who stops a key also stops the version that follows: one that is not made yet is
    not made, and one that has no plan yet gets none.
    """
    new = context.state.keys.version(step.key, step.new)
    if new is not None and (new.state is not KeyState.PRE_ACTIVE):
        return ""  # it has gone on before
    for version in context.state.keys.versions(step.key):
        if version.state_at(context.now) is KeyState.SUSPENDED:
            return f"{version.name} is suspended: resume it, then retry"
    if new is not None and new.came_from is not None:
        return (
            f"{new.name} was stopped since then: resume or activate it by an operation, then retry"
        )
    old = context.state.keys.version(step.key, step.old)
    if old is not None and (old.compromised or old.state is KeyState.SUSPENDED):
        name = f"{step.key}/versions/{step.new}"
        return f"{old.name} was stopped since then: propose {name} by operations of its own"
    return ""


def _written(batch: Sequence[Sequence[Change]], work: Work) -> list[str]:
    """Writes the changes of some keys; returns why others were not changed.

    A key that an officer stops meanwhile must not keep the others from being changed.
    """
    if not batch:
        return []
    try:
        work.save((), [change for changes in batch for change in changes])
    except ChangedMeanwhileError as error:
        if len(batch) == 1:
            return [str(error)]
        return [text for changes in batch for text in _written([changes], work)]
    return []


def _waits(version: KeyVersion) -> bool:
    """Whether a version waits for its certificate.

    One that officers have activated by an operation gets it by an operation, too.
    """
    return version.certificate is None and version.activate_at is None


def imports(
    details: Rotate, certificates: Sequence[bytes], operation: str, context: OperationContext
) -> list[Change]:
    """Returns the changes that give certificates to the new versions of a rotation.

    Each must be for one of them and issued by the plan's authority. Raises OperationError with
    everything that is wrong.
    """
    issuers = [decoded(issuer) for issuer in details.issuers]
    waiting: dict[bytes, KeyVersion] = {}
    for index, step in enumerate(read_plan(context.document(details.plan_sha256) or b"[]")):
        version = context.state.keys.version(step.key, step.new)
        made = version is not None and version.cka_id == cka_id_of(operation, index)
        if version is not None and made and (version.certificate or _waits(version)):
            waiting[version.spki] = version
    changes, problems = [], []
    for index, data in enumerate(certificates):
        try:
            certificate, version = _match(data, waiting)
            after = certified(version, data, context.now)
        except OperatorError as error:
            problems.append(f"certificates[{index}]: {error}")
            continue
        at = max(float(details.activate_at), context.now)
        until = at + details.sign_for_seconds if details.sign_for_seconds else None
        wrong = certificate_problems(version, certificate, issuers, context)
        wrong += activation_problems(after, at, until, context)
        problems += [f"certificates[{index}]: {text}" for text in wrong]
        if after is not version:
            changes.append(Change(version, after))
            waiting[version.spki] = after
    if problems:
        raise OperationError(*problems)
    return changes


def _match(data: bytes, waiting: dict[bytes, KeyVersion]) -> tuple[x509.Certificate, KeyVersion]:
    certificate = read_any(data)
    spki = spki_of(certificate.public_key())
    if spki not in waiting:
        raise OperationError("is not for a new key of this rotation")
    return certificate, waiting[spki]


def plan_of(attachment: bytes, context: OperationContext) -> list[Step]:
    """Reads a list of keys, one a line, or a plan's own text; raises OperationError.

    Every key must have a primary version, none that is suspended and none that is PRE_ACTIVE.
    """
    if attachment.startswith(b"["):
        names = [str(step.key) for step in read_plan(attachment)]
    else:
        names = attachment.decode(errors="replace").split()
    if not 1 <= len(names) <= MAX_KEYS:
        raise OperationError(
            f"attachment: names {count(len(names), 'key')}, expected 1 to {MAX_KEYS}"
        )
    problems: list[str] = []
    if len(set(names)) < len(names):
        problems.append("attachment: a key is named twice")
    steps = []
    for name in sorted(set(names)):
        try:
            steps.append(_step(context.key(name), context))
        except OperationError as error:
            problems += error.texts
    if problems:
        raise OperationError(*problems)
    return steps


def _step(key: KeyName, context: OperationContext) -> Step:
    versions = context.state.keys.versions(key)
    primary = context.state.keys.primary(key, context.now)
    states = {version.state_at(context.now) for version in versions}
    if primary is None:
        raise OperationError(f"{key} has no active version to rotate: activate one")
    if KeyState.SUSPENDED in states:
        raise OperationError(f"{key} has a suspended version: resume or deactivate it first")
    if KeyState.PRE_ACTIVE in states:
        raise OperationError(f"{key} has a version that is not active yet: activate that one")
    new, number = next_version(key, versions)
    return Step(key, primary.number, number, new.algorithm, new.bits)


def read_plan(content: bytes) -> list[Step]:
    """Reads what ``plan_text`` wrote; raises OperationError."""
    try:
        return parse_plan(content)
    except ValueError:
        raise OperationError("attachment: is not a list of keys") from None


def subject_of(template: str, key: KeyName, number: int) -> str:
    """Returns the subject of one version's request; raises OperationError."""
    subject = (
        template.replace("{facility}", key.facility)
        .replace("{key}", key.key)
        .replace("{version}", str(number))
    )
    if problems := subject_problems(subject, "CN={facility} {version},C=VN"):
        raise OperationError(*problems)
    return subject
