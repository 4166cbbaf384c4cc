"""Where state is stored: registry, audit log, its disk, and the mirror of its checkpoints."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from signer.audit.format.parse import parse
from signer.audit.format.record import RecordError
from signer.audit.format.segments import (
    CHECKPOINTS,
    KEY_FILE,
    TornTail,
    list_segments,
    open_segment,
)
from signer.audit.read.notes import NEWEST
from signer.audit.write.disk import Disk
from signer.config.models import AuditConfig
from signer.errors import OperatorError
from signer.keys.database import connect, explained, is_newer, sqlite_file, version_of
from signer.keys.registry import Registry, RegistryState
from signer.keys.schema import VERSION
from signer.keys.wrapping_use import WrappingUse
from signer.officers.approval import Officers
from signer.officers.validity import Validity
from signer.text import count, utc
from signer.tools.doctor.file_checks import folder_problem
from signer.tools.doctor.finding import Finding, ok, warning, wrong

SLOW_SECONDS = 0.1  # every batch waits for two syncs; a good disk takes about 1 ms for each
ANSWER_SECONDS = 10.0  # of a file server
_INIT = "`signer init --config FILE` creates it"
_RENEW = "officers renew it: `signer operations propose officers --add FILE` (docs/runbook.md)"
_PROPOSE = "`signer operations propose"
_NO_WAY_BACK = "correct the clock if it is wrong; else there is no way back (docs/officers.md)"


class Written(NamedTuple):
    """The result of writing to a folder: ``problem`` says why it failed."""

    seconds: float
    problem: str = ""


# --- the registry ------------------------------------------------------------------------------


def examine_registry(url: str, *, begun: bool) -> tuple[Finding, RegistryState | None]:
    """Judges whether the registry answers and has this program's schema; returns what it holds.

    ``begun``: the appliance has an audit log, so there was a registry. None: it cannot be read.
    """
    path = sqlite_file(url)
    if path is not None and (problem := folder_problem(path.parent)):
        return wrong("registry", *problem), None
    if path is not None and not path.exists():
        return judge_schema(None, begun=begun), None
    try:
        engine = connect(url, create=False)
        try:
            with explained("read"), engine.connect() as connection:
                schema = version_of(connection)
        finally:
            engine.dispose()
        if schema != VERSION:
            return judge_schema(schema, begun=begun), None
        with Registry.open(url) as registry:
            state = registry.state()
    except OperatorError as error:
        remedy = "make it available, or restore it from the backup"
        return wrong("registry", str(error), remedy), None
    if not state.officers:
        seen = "it contains no officers, so no key can be created"
        return warning("registry", seen, _INIT), state
    keys = count(len(state.keys), "key version") if len(state.keys) else "no keys yet"
    seen = f"schema {schema}, {count(len(state.officers), 'officer')}, {keys}"
    return ok("registry", seen), state


def judge_officers(officers: Officers, needed: int, now: float) -> Finding:
    """Judges the certificates of officers; an operation needs ``needed`` of them at most."""
    validity = Validity.of(officers, now)
    valid, end = len(validity.valid), validity.next_end
    have = f"{valid} of {count(len(officers), 'officer')} have a valid certificate"
    if valid < needed:
        seen = f"{have}, and operations need {needed}"
        return wrong("officers", seen, _RENEW if valid else _NO_WAY_BACK)
    if validity.ended:
        return warning("officers", f"the certificate of {min(validity.ended)} has ended", _RENEW)
    if validity.ending:
        who, end = min(validity.ending, key=lambda each: each[1])
        return warning("officers", f"the certificate of {who} ends at {utc(end)}", _RENEW)
    return ok("officers", f"{have}, until {utc(end or now)} at least")


def judge_wrapping(
    uses: Sequence[WrappingUse], tokens: Sequence[str], *, stores: bool
) -> Iterator[Finding]:
    """Judges where the wrapping keys are, by the registry, of an appliance with these tokens.

    ``stores``: the policy in the files has keys that are stored wrapped. Whether a token still
    holds a wrapping key is compared by the daemon, which is logged in.
    """
    check = "wrapped keys"
    in_use = [use for use in uses if use.versions]
    if stores and not any(use.newest_on for use in uses if {*use.newest_on} & {*tokens}):
        seen = "the policy stores keys wrapped, and no token here has a wrapping key"
        yield warning(check, seen, f"officers create one: {_PROPOSE} create-wrapping-key`")
        return
    for use in in_use:
        lacking = [token for token in tokens if token not in use.tokens]
        if lacking:
            keys = count(use.versions, "key version")
            seen = f"{', '.join(lacking)} cannot sign with {keys} that {use.id} wraps"
            remedy = f"copy it there, then {_PROPOSE} place-wrapping-key` (docs/officers.md)"
            yield warning(check, seen, remedy)
            return
    if in_use:
        keys = count(sum(use.versions for use in in_use), "key version is", "key versions are")
        wrapping = count(len(in_use), "wrapping key")
        yield ok(check, f"{keys} wrapped by {wrapping}, which each token here has")


def judge_schema(schema: str | None, *, begun: bool) -> Finding:
    """Judges a schema that differs from this program's; None: the registry is missing."""
    if schema is None and begun:
        return wrong(
            "registry",
            "the registry is missing, but an audit log exists",
            "put it back from the backup",
        )
    if schema is None:
        return warning("registry", "the registry does not exist yet", _INIT)
    if is_newer(schema):
        return wrong(
            "registry",
            f"schema {schema} was written by a newer version of signer",
            "install that version, or restore the backup from before the upgrade",
        )
    return wrong(
        "registry",
        f"schema {schema} is older than this program's {VERSION}",
        "stop the daemon, make a backup, then `signer registry migrate --config FILE`",
    )


# --- the audit log -----------------------------------------------------------------------------


def examine_audit(config: AuditConfig, *, officers: bool) -> Iterator[Finding]:
    """Judges the folder of the log, its disk, and the mirror of its checkpoints.

    ``officers``: the registry contains officers, so a log exists here or on another machine.
    """
    folder = config.directory
    begun = bool(list_segments(folder))
    if not folder.exists():
        yield judge_log(folder, begun=False, officers=officers, key=False)
        yield judge_space(Disk().free_bytes(_existing(folder)), config.low_disk_bytes)
    elif problem := folder_problem(folder):
        yield wrong("audit", *problem)
    else:
        key = (folder / KEY_FILE).exists()
        yield judge_log(folder, begun=begun, officers=officers, key=key)
        yield judge_space(Disk().free_bytes(folder), config.low_disk_bytes)
        yield judge_sync(folder, try_to_write(folder))
    yield _mirror(config, begun=begun)


def judge_log(folder: Path, *, begun: bool, officers: bool, key: bool) -> Finding:
    """Judges the content of the log's folder."""
    if not begun and officers:
        return wrong(
            "audit",
            f"{folder} contains no log, but the registry contains officers",
            "put it back from the backup; for a further appliance: `signer init --join --log DIR`",
        )
    if not begun:
        return warning("audit", f"{folder} contains no log yet", _INIT)
    if not key:
        return warning(
            "audit", f"{folder / KEY_FILE} is missing", "restore it from the auditor's copy"
        )
    return ok("audit", f"{folder} contains a log; `signer audit verify` checks it")


def judge_space(free: int, low: int) -> Finding:
    """Judges the free bytes on the log's disk; below ``low`` nothing is signed."""
    seen = f"{free >> 20} MiB are free; nothing is signed below {low >> 20}"
    if free < low:
        return wrong("audit disk", seen, "free space, or run `signer audit archive`")
    if free < 4 * low:
        return warning("audit disk", seen, "free space soon, or run `signer audit archive`")
    return ok("audit disk", seen)


def judge_sync(folder: Path, written: Written) -> Finding:
    """Judges whether a file can be made durable, and how long that takes."""
    check = "audit sync"
    if written.problem:
        seen = f"{folder} cannot be written: {written.problem}"
        return wrong(check, seen, "repair the disk or the mount")
    seen = f"a file was durable after {written.seconds * 1000:.1f} ms"
    if written.seconds > SLOW_SECONDS:
        return warning(check, seen, "every batch waits for two of these: use a faster disk")
    return ok(check, seen)


def judge_mirror(mirror: Path, written: Written, *, apart: bool, checkpoints: bool) -> Finding:
    """Judges the second folder of checkpoints.

    ``apart``: it is on another disk than the log; ``checkpoints``: it has the expected ones.
    """
    if written.problem:
        return wrong(
            "mirror",
            f"{mirror} cannot be written: {written.problem}",
            "mount it, or correct `audit.mirror`: another machine must store checkpoints too",
        )
    if not apart:
        return warning(
            "mirror",
            f"{mirror} is on the disk of the log itself",
            "mount a folder of another machine: a change of both needs one machine only",
        )
    if not checkpoints:
        return warning(
            "mirror", f"{mirror} contains no checkpoint", "check whether the daemon writes any"
        )
    return ok("mirror", f"{mirror} can be written")


def try_to_write(folder: Path) -> Written:
    """Writes and syncs a small file as the log does, and removes it."""
    disk, began = Disk(), time.perf_counter()
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(b"examined")
            file.flush()
            disk.sync(file.fileno())
            disk.sync_directory(folder)
            return Written(time.perf_counter() - began)
    except OSError as error:
        return Written(0.0, error.strerror or str(error))


def last_record_time(folder: Path) -> float | None:
    """Returns the time of the log's last complete record, None if none can be read."""
    for segment in reversed(list_segments(folder)):
        body = None
        try:
            with open_segment(segment) as (_, frames):
                for each in frames:
                    body = each.body
        except TornTail:
            pass  # the daemon is writing a record, or was interrupted
        except (OSError, RecordError):
            return None
        if body is not None:
            try:
                return parse(body).time_us / 1e6
            except RecordError:
                return None
    return None


def _mirror(config: AuditConfig, *, begun: bool) -> Finding:
    mirror = config.mirror
    if mirror is None:
        return warning(
            "mirror",
            f"none is configured: checkpoints are only in {config.directory / CHECKPOINTS}",
            "set `audit.mirror` to a folder of another machine, or copy the ordinary log elsewhere",
        )
    # A call to a file server that does not answer cannot be interrupted: it gets a thread.
    answers: list[Finding] = []
    log = _existing(config.directory)

    def ask() -> None:
        problem = folder_problem(mirror)
        written = Written(0.0, problem.seen) if problem else try_to_write(mirror)
        apart = bool(problem) or mirror.stat().st_dev != log.stat().st_dev
        checkpoints = not begun or (mirror / NEWEST).exists()
        answers.append(judge_mirror(mirror, written, apart=apart, checkpoints=checkpoints))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    silent = Written(0.0, f"no answer within {ANSWER_SECONDS:g} s")
    return [*answers, judge_mirror(mirror, silent, apart=True, checkpoints=True)][0]


def _existing(folder: Path) -> Path:
    """Returns the folder, or the nearest existing one above it."""
    return folder if os.path.lexists(folder) else _existing(folder.parent)
