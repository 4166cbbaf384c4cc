"""``signer keys`` against an appliance that is played."""

import hashlib
import io
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from signer.algorithms import Algorithm
from signer.cli.keys.showing import version_lines
from signer.cli.operations import flow
from signer.client import PreconditionError, Suspension, Wrapping, WrappingKey
from signer.key_index import KeyIndex
from signer.model import KeyName, KeyState
from signer.officers.kinds.rotation import plan_of
from signer.officers.rotation_plan import Step, plan_text
from signer.text import utc
from tests.stand_ins import key_version
from tests.unit.cli.operations_played import NOW, certify, der, of_key, version

KEY = "facilities/f/keys/k"
RSA = "facilities/f/keys/rsa"
RSA_KEY = rsa.generate_private_key(65_537, 2048)


@pytest.fixture
def registry(played: Any) -> Any:
    """One key with a third version that was destroyed, and an RSA key."""
    soon = datetime.fromtimestamp(NOW, UTC) + timedelta(days=10)
    played.versions = [
        version(f"{KEY}/versions/1", "DEACTIVATED"),
        version(f"{KEY}/versions/2", sign_until=soon),
        version(f"{KEY}/versions/3", "DESTROYED"),
        of_key(RSA_KEY, "PS256", f"{RSA}/versions/1"),
    ]
    return played


STEPS = [
    Step(KeyName("f", "k"), 2, 4, Algorithm.ES256, 0),
    Step(KeyName("f", "rsa"), 1, 2, Algorithm.PS256, 2048),
]
ROTATE = ("keys", "rotate", "--activate-at", "2030-01-01T00:00:00Z", "--overlap", "7d")


def plan(played: Any, steps: list[Step]) -> None:
    """Has the appliance answer with the plan of these steps."""
    content = plan_text(steps)
    played.operations.filled = {
        "plan_sha256": hashlib.sha256(content).hexdigest(),
        "keys": len(steps),
        "token": "t",
    }


def test_a_rotation_sends_its_keys_and_signs_their_plan(
    run: Any, registry: Any, people: Any
) -> None:
    plan(registry, STEPS)
    more = ("--sign-for", "365d", "--destroy-after", "30d", "--yes")
    done = run(*ROTATE, RSA, KEY, KEY, *more, "--client", people.a.client)
    assert (done.code, done.err) == (0, "")
    [(kind, arguments, attachment)] = registry.operations.asked
    assert (kind, attachment.decode()) == ("rotate", f"{KEY}\n{RSA}\n")
    assert arguments == {
        "activate_at": 1_893_456_000,
        "overlap_seconds": 604_800,
        "sign_for_seconds": 31_536_000,
        "destroy_after_seconds": 2_592_000,
        "subject": "",
        "issuers": [],
        "token": "",
    }
    [(_, _, _, sent)] = registry.operations.calls
    assert sent == attachment


@pytest.mark.parametrize(
    "steps",
    [
        STEPS[:1],
        [STEPS[0], STEPS[1]._replace(key=KeyName("g", "rsa"))],
        [STEPS[0]._replace(old=1), STEPS[1]],
        [STEPS[0]._replace(new=3), STEPS[1]],
        [STEPS[0], STEPS[1]._replace(bits=1024)],
    ],
)
def test_a_rotation_of_other_keys_is_not_signed(
    run: Any, registry: Any, people: Any, steps: list[Step]
) -> None:
    plan(registry, steps)
    done = run(*ROTATE, KEY, RSA, "--client", people.a.client, "--yes")
    assert (done.code, done.out) == (1, "")
    assert "nothing was signed" in done.err
    assert registry.operations.calls == []


def test_the_plan_is_that_of_the_appliance(registry: Any) -> None:
    """Its text for a list of keys is ours for the same keys."""
    index = KeyIndex(
        key_version(
            key=KeyName.parse(each.name.partition("/versions/")[0]),
            number=int(each.name[-1]),
            algorithm=Algorithm(each.algorithm),
            state=KeyState(each.state),
            cka_id=each.name.encode(),
            spki=each.public_key,
            kid=each.kid,
            thumbprint=each.jwk_thumbprint,
            created=NOW,
            activate_at=NOW,
        )
        for each in registry.versions
    )

    class World:
        now = NOW + 1

        class state:  # noqa: N801  # an attribute of World
            keys = index

        @staticmethod
        def key(name: str) -> KeyName:
            return KeyName.parse(name)

    theirs: Any = World
    assert plan_of(f"{KEY}\n{RSA}\n".encode(), theirs) == STEPS


def test_keys_come_from_lists_and_from_what_is_due(
    run: Any, registry: Any, people: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ("--client", people.a.client, "--yes")
    file = tmp_path / "list"
    file.write_text(f"{RSA}\n\n  {KEY}  \n")
    plan(registry, STEPS)
    assert run(*ROTATE, "--list", file, *client).code == 0
    plan(registry, STEPS[:1])
    assert run(*ROTATE, "--due", "30", *client).code == 0
    typed = io.TextIOWrapper(io.BytesIO(f"{KEY}\n".encode()))
    monkeypatch.setattr(sys, "stdin", typed)
    assert run(*ROTATE, "--list", "-", *client).code == 0
    sent = [attachment.decode() for _, _, attachment in registry.operations.asked]
    assert sent == [f"{KEY}\n{RSA}\n", f"{KEY}\n", f"{KEY}\n"]
    done = run(*ROTATE, "--due", "5", *client)
    assert (done.code, "nothing to rotate" in done.err) == (1, True)
    file.write_text(f"{KEY}\nnonsense\n")
    done = run(*ROTATE, "--list", file, *client)
    assert (done.code, f"{file}, line 2" in done.err) == (1, True)
    for words in ((), (KEY, "--subject", "CN=x"), (KEY, "--issuer", people.a.certificate)):
        assert run(*ROTATE, *words, *client).code == 2


@pytest.mark.usefixtures("registry")
def test_plan(run: Any, people: Any) -> None:
    client = ("--client", people.a.client)
    assert run("keys", "plan", "--days", 30, "--names", *client).out == f"{KEY}\n"
    [said] = json.loads(run("keys", "plan", "--days", 30, "--json", *client).out)
    assert (said["version"], said["cause"]) == (f"{KEY}/versions/2", "sign_until")
    assert (said["successor"], said["prepared"]) == (None, None)
    shown = run("keys", "plan", *client).out
    assert shown.isascii()
    assert f"{KEY}/versions/2" in shown
    assert "nothing ends" in run("keys", "plan", "--days", 5, *client).out
    assert run("keys", "plan", "--days", 5, "--names", *client).out == ""


def test_a_version_that_has_nearly_made_its_signatures_is_due(
    run: Any, registry: Any, people: Any
) -> None:
    client = ("--client", people.a.client)
    used: dict[str, Any] = {"signatures_used": 79, "lifetime_signatures": 100}
    names = [f"facilities/{facility}/keys/k/versions/1" for facility in "abc"]
    registry.versions = [
        version(names[0], **used),
        version(names[1], **used | {"signatures_used": 80}),
        version(names[2], **used | {"lifetime_signatures": 0}),
    ]
    [said] = json.loads(run("keys", "plan", "--days", 0, "--json", *client).out)
    assert (said["version"], said["ends"], said["cause"]) == (names[1], None, "lifetime_signatures")
    assert run("keys", "plan", "--names", *client).out == "facilities/b/keys/k\n"
    soon = datetime.fromtimestamp(NOW, UTC) + timedelta(days=5)
    registry.versions.append(
        version("facilities/d/keys/k/versions/1", sign_until=soon, **used | {"signatures_used": 99})
    )
    table = run("keys", "plan", *client).out
    assert 0 < table.index(names[1]) < table.index("facilities/d/keys/k/versions/1")
    # Its successor is there already, or planned within the days that are asked for.
    registry.versions = [
        registry.versions[1]._replace(primary=False),
        version("facilities/b/keys/k/versions/2", activate_at=soon),
    ]
    assert run("keys", "plan", "--names", *client).out == ""


def request(key: Any, subject: str) -> str:
    name = x509.Name.from_rfc4514_string(subject)
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


@pytest.fixture
def waiting(registry: Any) -> Any:
    """A rotation that waits, with new versions of which one has its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    certified = der(certify(key, "CN=x"))
    names = [f"facilities/f{number}/keys/k/versions/2" for number in range(5)]
    new = [
        of_key(
            key, "ES256", name, "PRE_ACTIVE", certification_request=request(key, f"CN=f{at} k 2")
        )
        for at, name in enumerate(names)
    ]
    new[1] = new[1]._replace(certificate=certified)
    new[2] = new[2]._replace(certification_request=request(key, "CN=another rotation's"))
    new[3] = new[3]._replace(created=datetime.fromtimestamp(NOW - 1, UTC))
    registry.versions += new
    details = {"subject": "CN={facility} {key} {version}", "issuers": ["x"], "keys": 2}
    content = registry.operations.content("rotate", details)
    registry.rotation = registry.operations.keep(content, state="WAITING").id
    return registry


def test_requests_are_written_for_what_waits(
    run: Any, waiting: Any, people: Any, tmp_path: Path
) -> None:
    words = ("keys", "requests", waiting.rotation, "--out", tmp_path / "out")
    done = run(*words, "--client", people.a.client, "--json")
    assert done.code == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["f0.k.v2.csr", "f4.k.v2.csr"]
    assert [Path(each["file"]).name for each in json.loads(done.out)] == names
    text = (tmp_path / "out" / names[0]).read_bytes()
    subject = x509.load_pem_x509_csr(text).subject
    assert subject == x509.Name.from_rfc4514_string("CN=f0 k 2")

    file = tmp_path / "list"
    file.write_text("facilities/f4/keys/k\n")
    done = run(*words[:-1], tmp_path / "some", "--list", file, "--client", people.a.client)
    assert "1 request is in" in done.out
    assert [each.name for each in (tmp_path / "some").iterdir()] == ["f4.k.v2.csr"]


def test_more_requests_than_keys_are_reported(
    run: Any, waiting: Any, people: Any, tmp_path: Path
) -> None:
    details = {"subject": "CN={facility} {key} {version}", "issuers": ["x"], "keys": 1}
    content = waiting.operations.content("rotate", details)
    one = waiting.operations.keep(content, state="WAITING").id
    words = ("--out", tmp_path, "--client", people.a.client)
    done = run("keys", "requests", one, *words)
    assert (done.code, "--list" in done.err) == (1, True)
    other = waiting.operations.keep(waiting.operations.content("destroy", {})).id
    done = run("keys", "requests", other, *words)
    assert (done.code, "is not a rotation" in done.err) == (1, True)


def test_requests_of_a_proposal_wait_for_its_approval(
    run: Any, waiting: Any, people: Any, tmp_path: Path
) -> None:
    details = {"subject": "CN={facility}", "issuers": ["x"], "keys": 1}
    one = waiting.operations.keep(waiting.operations.content("rotate", details)).id
    done = run("keys", "requests", one, "--out", tmp_path / "new", "--client", people.a.client)
    assert (done.code, done.out) == (1, "")
    assert list(tmp_path.glob("new")) == [], "a refusal makes no folder"
    assert f"operation {one} has no requests yet: they are made once it is approved" in done.err


def test_a_mistyped_folder_does_not_become_a_tree(
    run: Any, waiting: Any, people: Any, tmp_path: Path
) -> None:
    words = ("keys", "requests", waiting.rotation, "--client", people.a.client, "--out")
    done = run(*words, tmp_path / "absent" / "out")
    assert (done.code, list(tmp_path.glob("absent"))) == (1, [])
    assert "out cannot be made: No such file or directory" in done.err
    assert f"{tmp_path / 'new'} is a new folder" in run(*words, tmp_path / "new").err
    assert "folder" not in run(*words, tmp_path / "new").err


def test_a_certificate_that_is_refused_is_named_by_its_file(
    run: Any, waiting: Any, people: Any, tmp_path: Path
) -> None:
    files = []
    for name in "abc":
        files.append(tmp_path / f"{name}.pem")
        made = certify(ec.generate_private_key(ec.SECP256R1()), f"CN={name}")
        files[-1].write_bytes(made.public_bytes(Encoding.PEM))

    def refuse(*_: Any, **__: Any) -> Any:
        raise PreconditionError(
            "FAILED_PRECONDITION",
            "OPERATION_REFUSED",
            "certificates[0]: it ends too early\ncertificates[2]: is not for a new key",
        )

    waiting.operations.import_certificates = refuse
    done = run("keys", "certificates", waiting.rotation, *files, "--client", people.a.client)
    assert done.code == 1
    assert f"{files[0]}: it ends too early\n{files[2]}: is not for a new key" in done.err
    assert "certificates[" not in done.err


def test_certificates_are_sent_once_each_and_without_authorities(
    run: Any, waiting: Any, people: Any, tmp_path: Path
) -> None:
    made = [certify(ec.generate_private_key(ec.SECP256R1()), f"CN={name}") for name in "abc"]
    ca = certify(ec.generate_private_key(ec.SECP256R1()), "CN=ca", ca=True)
    bundle, one = tmp_path / "bundle.pem", tmp_path / "one.der"
    pems = [each.public_bytes(Encoding.PEM) for each in (made[0], ca, made[1])]
    bundle.write_bytes(b"text\n" + b"".join(pems))
    one.write_bytes(der(made[2]))
    waiting.operations.answers["import_certificates"] = waiting.operations.kept[waiting.rotation]
    words = ("keys", "certificates", waiting.rotation)
    assert run(*words, bundle, one, bundle, "--client", people.a.client).code == 0
    [(_, identity, sent, _)] = waiting.operations.calls
    assert identity == waiting.rotation
    short = ("keys", "certificates", waiting.rotation[:8].upper())
    assert run(*short, bundle, one, "--client", people.a.client).code == 0
    assert waiting.operations.calls.pop()[1] == waiting.rotation
    done = run("keys", "certificates", "abcdef", one, "--client", people.a.client)
    assert (done.code, "an id that begins with abcdef" in done.err) == (1, True)
    assert [x509.load_der_x509_certificate(each) for each in sent] == made
    waiting.operations.states = iter(["FAILED"])
    assert run(*words, one, "--wait", "--client", people.a.client).code == 1
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(ca.public_bytes(Encoding.PEM))
    assert run(*words, ca_file, "--client", people.a.client).code == 1
    assert run(*words, "--client", people.a.client).code == 2
    one.write_bytes(b"no certificate")
    done = run(*words, one, "--client", people.a.client)
    assert (done.code, str(one) in done.err) == (1, True)


@pytest.mark.parametrize(
    ("target", "call"),
    [
        (KEY, ("suspend_key", KEY, "why")),
        (f"{KEY}/versions/1", ("suspend_key", f"{KEY}/versions/1", "why")),
        ("facilities/f", ("suspend_facility", "f", "why")),
        ("groups/01", ("suspend_group", "01", "why")),
        ("everything", ("suspend_everything", "why")),
    ],
)
def test_suspend(run: Any, played: Any, people: Any, target: str, call: tuple[str, ...]) -> None:
    changed = (version(f"{KEY}/versions/1", "SUSPENDED"),)
    played.operations.answers = {call[0]: changed if call[0] == "suspend_key" else None}
    words = ("keys", "suspend", target, "--reason", "why", "--client", people.a.client)
    done = run(*words)
    assert (done.code, done.err) == (0, "")
    assert f"{target} is suspended" in done.out
    said = json.loads(run(*words, "--json").out)
    states = {f"{KEY}/versions/1": "SUSPENDED"} if call[0] == "suspend_key" else {}
    assert said == {"suspended": target, "key_versions": states}
    assert played.operations.calls == [call, call]


@pytest.mark.parametrize(
    "target", ["", "f", "groups", "groups/", "groups/a/b", "facilities/f/keys", "Everything"]
)
def test_what_cannot_be_suspended(run: Any, played: Any, people: Any, target: str) -> None:
    done = run("keys", "suspend", target, "--reason", "r", "--client", people.a.client)
    assert (done.code, done.out) == (2, "")
    assert played.operations.calls == []


def test_far_reaching_stops_ask_on_a_terminal(
    run: Any, registry: Any, people: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script is not asked, and --yes neither: a stop must not wait."""
    monkeypatch.setattr(flow, "terminal", lambda: True)
    registry.operations.answers = {"suspend_everything": None, "mark_compromised": ()}
    me = ("--reason", "why", "--client", people.a.client)
    for words, said in (
        (("suspend", "everything"), "This stops every key of every appliance"),
        (("compromise", KEY), f"{KEY}/versions/2 is ACTIVE"),
        (("compromise", f"{KEY}/versions/2"), f"{KEY}/versions/2 is ACTIVE"),
    ):
        for answer, code in (("n\n", 1), ("y\n", 0)):
            monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
            done = run("keys", *words, *me)
            assert (done.code, said in done.err) == (code, True)
            assert len(registry.operations.calls) == (code == 0)
        assert (f"{KEY}/versions/1" in done.err) == (words == ("compromise", KEY))
        assert run("keys", *words, *me, "--yes").err == ""
        registry.operations.calls.clear()


def test_compromise_and_suspensions(run: Any, registry: Any, people: Any) -> None:
    played = registry
    client = ("--client", people.a.client)
    since = datetime.fromtimestamp(NOW, UTC)
    played.operations.answers = {
        "mark_compromised": (version(f"{KEY}/versions/1", "COMPROMISED"),),
        "suspensions": (Suspension("group", "01", since, "a", "r\x1b"),),
    }
    done = run("keys", "compromise", KEY, "--reason", "why", *client)
    assert "COMPROMISED" in done.out
    [said] = json.loads(run("keys", "suspensions", "--json", *client).out)
    assert (said["scope"], said["name"], said["since"]) == ("group", "01", since.isoformat())
    registry.versions.append(version(f"{KEY}/versions/3", "SUSPENDED"))
    of_keys = json.loads(run("keys", "suspensions", "--json", *client).out)[1:]
    assert of_keys == [
        {
            "scope": "version",
            "name": f"{KEY}/versions/3",
            "since": None,
            "officer": "",
            "reason": "",
        }
    ]
    shown = run("keys", "suspensions", *client).out
    assert "group 01" in shown
    assert shown.isascii()
    assert "\x1b" not in shown
    assert played.operations.calls[0] == ("mark_compromised", KEY, "why")


def test_a_list_shows_what_does_not_sign_and_when_each_ends(
    run: Any, registry: Any, people: Any
) -> None:
    """A suspended facility and an expired certificate do not look like keys that sign."""
    reason = "facility f is suspended by the officers"
    ended = der(certify(ec.generate_private_key(ec.SECP256R1()), "CN=x", days=0))
    later = datetime.fromtimestamp(NOW + 86_400 * 40, UTC)
    registry.versions[:] = [
        version(f"{KEY}/versions/1", certificate=ended, sign_until=later),
        version(f"{KEY}/versions/2", "PRE_ACTIVE", sign_until=later, suspension=reason),
        version(f"facilities/{'long' * 12}/keys/k/versions/1"),
    ]
    me = ("--client", people.a.client)
    done = run("keys", "list", *me)
    first, second, third = done.out.splitlines()
    assert "ACTIVE" in first
    assert re.search(r"ENDED \d{4}-\d\d-\d\d$", first)
    assert f"(PRE_ACTIVE)  until {later:%Y-%m-%d}" in second
    assert third.endswith("no end")
    assert f"(in brackets) signs nothing: {reason}" in done.err
    assert [each["suspension"] for each in json.loads(run("keys", "list", *me, "--json").out)] == [
        None,
        reason,
        None,
    ]
    for columns in (80, 120):
        lines = list(version_lines(registry.versions, datetime.now(UTC), columns))
        assert all(len(line) <= columns for line in lines)
    assert lines == done.out.splitlines()


def test_show_has_the_times_of_other_commands(run: Any, registry: Any, people: Any) -> None:
    certificate = der(certify(RSA_KEY, "CN=k"))
    registry.versions[1] = registry.versions[1]._replace(certificate=certificate)
    shown = run("keys", "show", KEY, "--client", people.a.client).out
    assert f"{'sign until':<20} {utc(registry.versions[1].sign_until.timestamp())}\n" in shown
    assert f"{'destroy at':<20} -\n" in shown
    ends = x509.load_der_x509_certificate(certificate).not_valid_after_utc
    assert f"  {'not after':<20} {utc(ends.timestamp())}\n" in shown
    assert "+00:00" not in shown


def test_list_show_and_csr(run: Any, registry: Any, people: Any) -> None:
    client = ("--client", people.a.client)
    listed = json.loads(run("keys", "list", "--json", *client).out)
    assert [each["name"] for each in listed] == [each.name for each in registry.versions]
    assert [each["primary"] for each in listed] == [False, True, False, True]
    shown = run("keys", "list", "--facility", "f", *client).out.splitlines()
    assert [line[0] for line in shown] == [" ", "*", " ", "*"]
    done = run("keys", "list", "--facility", "g", "--json", *client)
    assert (done.code, "facility g does not exist" in done.err) == (1, True)
    assert "facility g does not exist" in json.loads(done.out)["error"]["message"]
    out = people.a.client.with_name("trust-list.json")
    words = ("keys", "export", "--form", "trust-list", "--out", out, *client)
    assert run(*words, "--facility", "g").code == 1
    assert not out.exists()

    primary = json.loads(run("keys", "show", KEY, "--json", *client).out)
    assert primary == listed[1]
    assert primary["sign_until"] == registry.versions[1].sign_until.isoformat()
    pem = run("keys", "show", f"{KEY}/versions/1", "--pem", *client).out
    assert pem == listed[0]["public_key"]
    assert "BEGIN" not in run("keys", "show", KEY, *client).out
    done = run("keys", "show", "facilities/f/keys/none", *client)
    assert (done.code, "KEY_NOT_FOUND" in done.err) == (1, True)

    done = run("keys", "csr", KEY, *client)
    assert (done.code, "propose new-version" in done.err) == (1, True)
    registry.versions[3] = registry.versions[3]._replace(certification_request="PEM\n")
    assert run("keys", "csr", RSA, *client).out == "PEM\n"
    assert run("keys", "csr", f"{RSA}/versions/1", *client).out == "PEM\n"
    assert run("keys", "csr", "facilities/f/keys/none", *client).code == 1


ID = "0c8a54f4-8f39-4a6e-9f0e-3f6a3c1d2e7b"


def test_wrapping_keys_and_what_they_wrap(run: Any, registry: Any, people: Any) -> None:
    """By which wrapping key a version is wrapped, and where that is; in 80 columns."""
    client = ("--client", people.a.client)
    assert "create-wrapping-key" in run("keys", "wrapping-keys", *client).out
    since = datetime.fromtimestamp(NOW, UTC)
    tokens = ("hsm-" + "1" * 28, "hsm-2")
    registry.wrapping_keys += [
        WrappingKey(ID, b"\x01", since, tokens, tokens[:1], destroyed=False, key_versions=15_000),
        WrappingKey("old", b"\x02", since, tokens[:1], (), destroyed=True, key_versions=0),
        WrappingKey("nowhere\x1b", b"\x03", None, (), (), destroyed=False, key_versions=1),
    ]
    shown = run("keys", "wrapping-keys", *client).out.splitlines()
    assert shown == [
        f"{ID}  since {since:%Y-%m-%d}  wraps 15000 key versions",
        f"  on token {tokens[0]}, wraps new keys there",
        "  on token hsm-2",
        f"{'old':<36}  since {since:%Y-%m-%d}  destroyed",
        f"{'nowhere?':<36}  not in the registry  wraps 1 key version",
    ]
    assert max(map(len, shown)) <= 80
    listed = json.loads(run("keys", "wrapping-keys", "--json", *client).out)
    assert listed[0] == {
        "id": ID,
        "cka_id": "01",
        "created": since.isoformat(),
        "tokens": list(tokens),
        "newest_on": list(tokens[:1]),
        "destroyed": False,
        "key_versions": 15_000,
    }

    wrapping = Wrapping(ID, "AES_KEY_WRAP_PAD")
    registry.versions[1] = registry.versions[1]._replace(wrapping=wrapping)
    lines = run("keys", "list", *client).out.splitlines()
    assert [line.endswith("  wrapped") for line in lines] == [False, True, False, False]
    assert max(map(len, version_lines(registry.versions, datetime.now(UTC), 80))) <= 80
    said = json.loads(run("keys", "show", KEY, "--json", *client).out)
    assert said["wrapping"] == {"wrapping_key": ID, "mechanism": "AES_KEY_WRAP_PAD"}
    assert json.loads(run("keys", "list", "--json", *client).out)[1]["wrapping"] == said["wrapping"]
    assert re.search(f"wrapping key +{ID}", run("keys", "show", KEY, *client).out)


def test_export(run: Any, registry: Any, people: Any, tmp_path: Path) -> None:
    client, out = ("--client", people.a.client), tmp_path / "jwks.json"
    done = run("keys", "export", "--form", "jwks", "--out", out, *client)
    assert (done.code, done.out) == (0, "")
    assert len(json.loads(out.read_text())["keys"]) == 4
    registry.versions[2] = registry.versions[2]._replace(compromised=True)  # and destroyed since
    done = run("keys", "export", "--form", "jwks", *client)
    kids = {key["kid"] for key in json.loads(done.out)["keys"]}
    assert kids == {registry.versions[at].jwk_thumbprint for at in (0, 1, 3)}
    done = run("keys", "export", "--form", "trust-list", *client)
    assert (done.code, done.out, "nothing was written" in done.err) == (1, "", True)
    assert run("keys", "export", *client).code == 2


@pytest.mark.parametrize("name", ["01-001/keys/records", "01-001/", "", "A", "facilities/01-001"])
@pytest.mark.parametrize("words", [("list",), ("export", "--form", "jwks")])
@pytest.mark.usefixtures("played")
def test_a_part_of_a_name_is_no_facility(
    run: Any, people: Any, words: tuple[str, ...], name: str
) -> None:
    done = run("keys", *words, "--facility", name, "--client", people.a.client)
    assert (done.code, done.out) == (2, "")
    assert "is not the id of a facility" in done.err


@pytest.mark.parametrize("target", ["facilities/", "facilities/A", "facilities/a b", "groups/x/y"])
def test_a_part_of_a_name_is_not_stopped(run: Any, played: Any, people: Any, target: str) -> None:
    done = run("keys", "suspend", target, "--reason", "x", "--client", people.a.client)
    assert (done.code, played.operations.calls) == (2, [])
