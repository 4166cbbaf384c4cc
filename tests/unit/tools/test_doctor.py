"""What the doctor makes of what it saw: values in, findings out."""

import errno
import fcntl
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from signer.config.client_file import Address
from signer.config.models import AuditConfig
from signer.hsm.spec import PinState, SeenToken
from signer.keys.schema import VERSION
from signer.keys.wrapping_use import WrappingUse
from signer.tools.doctor import machine, storage, tokens, worst
from signer.tools.doctor.file_checks import judge_owner, judge_state
from signer.tools.doctor.finding import Level, ok, warning, wrong
from signer.tools.doctor.machine import Limits
from signer.tools.doctor.storage import Written
from signer.tools.doctor.tls_certificates import judge_authorities, judge_chain, judge_dates

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OK, WARNING, WRONG = Level
READY = frozenset({"TOKEN_INITIALIZED", "USER_PIN_INITIALIZED", "LOGIN_REQUIRED"})
HERE = Path("/var/lib/signer")


def test_the_worst_finding_is_the_level_of_the_whole() -> None:
    good, bad, worse = ok("a", ""), warning("b", "", ""), wrong("c", "", "")
    assert worst([]) == worst([good]) == OK
    assert worst([good, bad]) == WARNING
    assert worst([bad, worse, good]) == WRONG


# --- wrapped keys ------------------------------------------------------------------------------


def use(identity: str, tokens: str, versions: int, newest_on: str = "") -> WrappingUse:
    return WrappingUse(identity, 1.0, tuple(tokens), tuple(newest_on), False, versions)


@pytest.mark.parametrize(
    ("uses", "tokens", "level", "text"),
    [
        ([], "a", WARNING, "no token here has a wrapping key"),
        ([use("w", "b", 0, "b")], "a", WARNING, "no token here has a wrapping key"),
        ([use("w", "ab", 3, "ab")], "ab", OK, "3 key versions are wrapped by 1 wrapping key"),
        ([use("w", "a", 3, "a")], "ab", WARNING, "b cannot sign with 3 key versions that w wraps"),
        ([use("v", "a", 0), use("w", "ab", 1, "ab")], "ab", OK, "1 key version is wrapped by 1"),
        (
            [use("v", "", 1), use("w", "a", 1, "a")],
            "a",
            WARNING,
            "a cannot sign with 1 key version",
        ),
    ],
)
def test_wrapped_keys_are_judged_by_where_their_wrapping_keys_are(
    uses: list[WrappingUse], tokens: str, level: Level, text: str
) -> None:
    [found] = storage.judge_wrapping(uses, [*tokens], stores=True)
    assert (found.check, found.level) == ("wrapped keys", level)
    assert text in found.seen


def test_nothing_is_said_of_wrapped_keys_where_there_are_none() -> None:
    assert list(storage.judge_wrapping([], ["a"], stores=False)) == []
    assert list(storage.judge_wrapping([use("w", "a", 0, "a")], ["a"], stores=True)) == []


# --- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "pin", "level", "text"),
    [
        ((), PinState.ACCEPTED, OK, "it worked at the last login"),
        ((), PinState.UNTRIED, OK, "the first start tries it once"),
        ((), PinState.CONFIRMED, OK, "an operator allowed one attempt"),
        ((), PinState.REJECTED, WRONG, "latched"),
        (("USER_PIN_COUNT_LOW",), PinState.ACCEPTED, WARNING, "counts a wrong PIN"),
        (("USER_PIN_COUNT_LOW",), PinState.CONFIRMED, WARNING, "counts a wrong PIN"),
        (("USER_PIN_COUNT_LOW",), PinState.UNTRIED, WRONG, "never worked here"),
        (("USER_PIN_COUNT_LOW",), PinState.REJECTED, WRONG, "latched"),
        (("USER_PIN_FINAL_TRY",), PinState.ACCEPTED, WRONG, "next wrong attempt locks"),
        (("USER_PIN_LOCKED",), PinState.ACCEPTED, WRONG, "is locked"),
    ],
)
def test_a_pin_is_judged_as_the_login_decides(
    flags: tuple[str, ...], pin: PinState, level: Level, text: str
) -> None:
    found = tokens.judge_pin("signer", READY | set(flags), pin, "")
    assert (found.level, found.check) == (level, "pin signer")
    assert text in found.seen
    assert bool(found.remedy) == (level is not OK)


def test_a_pin_that_cannot_be_read_or_is_not_set_is_wrong() -> None:
    assert tokens.judge_pin("t", READY, PinState.UNKNOWN, "it is empty").seen == "it is empty"
    found = tokens.judge_pin("t", READY - {"USER_PIN_INITIALIZED"}, PinState.UNTRIED, "")
    assert (found.level, found.seen) == (WRONG, "the token has no user PIN")


@pytest.mark.parametrize(
    ("serials", "flags", "level", "text"),
    [
        (["1"], READY, OK, "serial 1 is present"),
        (["1"], READY | {"WRITE_PROTECTED"}, WARNING, "write-protected"),
        (["1", "2"], READY, WRONG, "2 tokens with label 'signer' are present: 1, 2"),
        ([], READY, WRONG, "the module lists: 'other' (9)"),
    ],
)
def test_there_is_exactly_one_token_of_the_label(
    serials: list[str], flags: frozenset[str], level: Level, text: str
) -> None:
    found = [SeenToken("signer", serial, flags) for serial in serials]
    judged = tokens.judge_presence("signer", None, found, [SeenToken("other", "9", READY)])
    assert judged.level == level
    assert text in judged.seen


# --- certificates ------------------------------------------------------------------------------

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


def certificate(
    name: str,
    issuer: str,
    *,
    key: ec.EllipticCurvePrivateKey = KEY,
    by: ec.EllipticCurvePrivateKey = KEY,
    days: tuple[float, float] = (-1, 365),
    ca: bool | None = None,
) -> x509.Certificate:
    above, subject = (x509.Name.from_rfc4514_string(f"CN={each}") for each in (issuer, name))
    begins, ends = (NOW + timedelta(days=each) for each in days)
    builder = x509.CertificateBuilder(above, subject, key.public_key(), 7, begins, ends)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    return builder.sign(by, hashes.SHA256())


@pytest.mark.parametrize(
    ("days", "level", "text"),
    [
        ((-1, 30), OK, "valid until 2026-03-31 12:00 UTC, 30 days"),
        ((-1, 29.9), WARNING, "ends on 2026-03-31 09:36 UTC, in 29 days"),
        ((-1, 0), WRONG, "ended on 2026-03-01 12:00 UTC"),
        ((0, 90), OK, "90 days"),
        ((0.1, 90), WRONG, "not valid before 2026-03-01 14:24 UTC"),
    ],
)
def test_certificates_are_judged_by_their_dates(
    days: tuple[float, float], level: Level, text: str
) -> None:
    both = [certificate("a", "a", days=(-9, 900)), certificate("b", "b", days=days)]
    found = judge_dates("tls", both, NOW.timestamp())
    assert (found.level, found.seen.endswith(text)) == (level, True), found


def test_a_chain_is_in_order() -> None:
    root = certificate("root", "root", ca=True)
    middle = certificate("middle", "root", key=OTHER, ca=True)
    leaf = certificate("leaf", "middle", by=OTHER)
    now = NOW.timestamp()
    for chain in ([leaf], [leaf, middle], [leaf, middle, root]):
        assert judge_chain("tls", chain, now).level is OK
    for chain in ([leaf, root], [root, leaf], [leaf, leaf]):
        assert "was not issued by the next one" in judge_chain("tls", chain, now).seen
    wrong_key = certificate("leaf", "middle", by=KEY)
    assert judge_chain("tls", [wrong_key, middle], now).level is WRONG


@pytest.mark.parametrize(("ca", "level"), [(True, OK), (False, WRONG), (None, WRONG)])
def test_who_issues_client_certificates_is_an_authority(ca: bool | None, level: Level) -> None:
    all_of_them = [certificate("a", "a", ca=True), certificate("b", "b", ca=ca)]
    assert judge_authorities("tls.client_ca", all_of_them, NOW.timestamp()).level is level


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("owner", "level"), [(0, OK), (1000, OK), (1001, WARNING)])
def test_a_private_file_is_the_daemons_or_roots(owner: int, level: Level) -> None:
    assert judge_owner("tls.key", HERE, owner, 1000).level is level


@pytest.mark.parametrize(
    ("mode", "user", "level"),
    [(0o700, 7, OK), (0o755, 7, OK), (0o775, 7, WRONG), (0o702, 7, WRONG), (0o700, 0, WARNING)],
)
def test_the_folder_of_latches_is_the_daemons_alone(mode: int, user: int, level: Level) -> None:
    assert judge_state(HERE, mode, 7, user).level is level


# --- storage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "begun", "level", "text"),
    [
        (None, False, WARNING, "the registry does not exist yet"),
        (None, True, WRONG, "the registry is missing, but an audit log exists"),
        ("0001", True, WRONG, f"older than this program's {VERSION}"),
        ("9999", True, WRONG, "was written by a newer version of signer"),
    ],
)
def test_another_schema_is_told(schema: str | None, begun: bool, level: Level, text: str) -> None:
    found = storage.judge_schema(schema, begun=begun)
    assert (found.level, text in found.seen) == (level, True), found


@pytest.mark.parametrize(
    ("begun", "officers", "key", "level"),
    [
        (False, False, False, WARNING),
        (False, True, False, WRONG),
        (True, True, False, WARNING),
        (True, True, True, OK),
    ],
)
def test_a_log_that_is_not_there(begun: bool, officers: bool, key: bool, level: Level) -> None:
    assert storage.judge_log(HERE, begun=begun, officers=officers, key=key).level is level


@pytest.mark.parametrize(
    ("free", "level"), [(400, OK), (399, WARNING), (100, WARNING), (99, WRONG)]
)
def test_room_is_judged_by_where_signing_stops(free: int, level: Level) -> None:
    assert storage.judge_space(free << 20, 100 << 20).level is level


def test_a_disk_is_judged_by_a_file_that_is_made_durable(tmp_path: Path) -> None:
    written = storage.try_to_write(tmp_path)
    assert written.problem == ""
    assert written.seconds > 0
    assert list(tmp_path.iterdir()) == []
    assert storage.judge_sync(HERE, Written(0.002)).level is OK
    assert storage.judge_sync(HERE, Written(0.2)).level is WARNING
    gone = storage.judge_sync(HERE, storage.try_to_write(tmp_path / "gone"))
    assert (gone.level, "No such file" in gone.seen) == (WRONG, True)


@pytest.mark.parametrize(
    ("written", "apart", "checkpoints", "level"),
    [
        (Written(0.01), True, True, OK),
        (Written(0.01), False, True, WARNING),
        (Written(0.01), True, False, WARNING),
        (Written(0.0, "Stale file handle"), True, True, WRONG),
    ],
)
def test_a_mirror_takes_checkpoints_on_another_disk(
    written: Written, apart: bool, checkpoints: bool, level: Level
) -> None:
    found = storage.judge_mirror(HERE, written, apart=apart, checkpoints=checkpoints)
    assert found.level is level


def test_a_mirror_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(storage, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(storage, "try_to_write", lambda _: Written(float(over.wait(60))))
    context = {"directory": tmp_path}
    document = {"directory": "absent", "mirror": "."}
    config = AuditConfig.model_validate(document, context=context)
    mirror = list(storage.examine_audit(config, officers=False))[-1]
    over.set()
    assert (mirror.check, mirror.level) == ("mirror", WRONG)
    assert "no answer within" in mirror.seen


# --- the machine -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "synchronised", "level"),
    [
        (None, True, OK),
        (999.0, True, OK),
        (1009.0, True, OK),
        (1011.0, True, WRONG),
        (999.0, False, WARNING),
        (999.0, None, WARNING),
    ],
)
def test_a_clock_is_not_behind_its_log(
    last: float | None, synchronised: bool | None, level: Level
) -> None:
    assert machine.judge_clock(1000.0, last, synchronised).level is level


def test_the_kernel_says_whether_the_clock_is_synchronised() -> None:
    assert machine.synchronised() in (True, False, None)


@pytest.mark.parametrize(
    ("failure", "daemon", "level", "text"),
    [
        (0, None, OK, "is free"),
        (errno.EADDRINUSE, 7, OK, "the running daemon"),
        (errno.EADDRINUSE, 0, OK, "the running daemon"),
        (errno.EADDRINUSE, None, WRONG, "by another program"),
        (errno.EADDRNOTAVAIL, 7, WRONG, os.strerror(errno.EADDRNOTAVAIL)),
        (errno.EACCES, None, WRONG, os.strerror(errno.EACCES)),
    ],
)
def test_a_port_is_free_or_the_daemons(
    failure: int, daemon: int | None, level: Level, text: str
) -> None:
    found = machine.judge_port("listen", Address("127.0.0.1", 7443), failure, daemon)
    assert (found.level, text in found.seen) == (level, True), found


def test_the_holder_of_the_audit_log_is_seen_and_its_lock_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.running_daemon(tmp_path) is None
    file = tmp_path / "lock"
    file.touch()
    assert machine.running_daemon(tmp_path) is None
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr(fcntl, "flock", None)  # no more locks
        assert machine.running_daemon(tmp_path) == os.getpid()
    assert machine.running_daemon(tmp_path) is None


def test_a_daemon_may_listen_while_its_port_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = socket.socket.bind

    def bind_and_start(probe: socket.socket, address: tuple[str, int]) -> None:
        bind(probe, address)
        if not started:
            started.append(grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)]))
            assert started[0].add_insecure_port(f"127.0.0.1:{port}") == port
            started[0].start()

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started: list[grpc.Server] = []
    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "bind", bind_and_start)
        assert machine.try_to_bind(Address("127.0.0.1", port)) == 0
    assert machine.try_to_bind(Address("127.0.0.1", port)) == errno.EADDRINUSE
    started[0].stop(0).wait()


def test_ports_are_tried_as_a_server_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert machine.try_to_bind(Address("127.0.0.1", port)) == errno.EADDRINUSE
    assert machine.try_to_bind(Address("127.0.0.1", port)) == 0
    assert machine.try_to_bind(Address("192.0.2.1", port)) == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(
    ("status", "text", "level", "seen"),
    [
        (200, "ready\n", OK, "it is running (process 7) and is ready"),
        (503, "starting\nthe PIN\n", WRONG, "not ready: starting; the PIN"),
        (0, "Connection refused", WRONG, "/readyz: Connection refused"),
    ],
)
def test_a_daemon_says_itself_how_it_is(status: int, text: str, level: Level, seen: str) -> None:
    found = machine.judge_daemon(7, status, text)
    assert (found.level, seen in found.seen) == (level, True), found


def test_what_a_key_has_left_of_its_lifetime_is_judged() -> None:
    assert list(machine.judge_lifetimes([])) == []
    [good] = machine.judge_lifetimes([("01", 0.5), ("", 0.79)])
    assert (good.level, good.seen) == (
        OK,
        "a key of a facility without group has used 79 % of its lifetime",
    )
    [near] = machine.judge_lifetimes([("01", 0.8), ("", 0.79)])
    assert (near.level, near.seen) == (WARNING, "a key of group 01 has used 80 % of its lifetime")
    assert "`signer keys plan`" in near.remedy


def test_limits_are_judged() -> None:
    endless = float("inf")
    good, bad = Limits(endless, 0, endless), Limits(1024, endless, 65_536)
    assert machine.judge_files(good, "x").level is OK
    assert machine.judge_files(bad, "x").level is WARNING
    assert machine.judge_core(good, "x").level is OK
    assert machine.judge_core(bad, "x").level is WARNING
    assert machine.judge_memory(good, "x", swap=False).level is OK
    assert machine.judge_memory(bad, "x", swap=True).level is WARNING


def test_limits_of_another_process_are_read_as_ones_own() -> None:
    assert machine.limits_of(os.getpid()) == machine.limits_of(0)
    with pytest.raises(ProcessLookupError):
        machine.limits_of(2**22 + 1)
