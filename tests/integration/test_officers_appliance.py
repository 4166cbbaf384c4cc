"""A real appliance from nothing: ``signer init``, ``signer serve``, and officers who decide."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from signer.client import DeniedError, InvalidRequestError
from signer.daemon.accounts import UNACCOUNTED
from signer.tools.dev import key_plan as plan
from signer.tools.dev import pki
from tests.daemon import Daemon, verified
from tests.integration import edge, officers
from tests.integration.place import KEY, Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Refused first, for every reason that init has; then begun with two officers."""
    made = Place(tmp_path_factory.mktemp("appliance"))
    refusals = {
        (): "0 officers are named",
        ("officer-a",): "1 officer is named, but operations need 2",
        ("officer-a", "officer-a"): "1 officer is named",
        ("officer-a", "issuer"): "is a client in the policy",
    }
    for names, told in refusals.items():
        done = made.init(*names)
        assert (done.code, told in done.err) == (1, True), done.err
        assert not (made.dir / "audit").exists()
    assert made.signer("init", "--join", "--without-log", "there is none").code == 1
    done = made.init("officer-a", "officer-b")
    assert done.code == 0, done.err
    again = made.init("officer-a", "officer-b")
    assert (again.code, "only once" in again.err) == (1, True)
    return made


@pytest.fixture(scope="module")
def served(place: Place) -> Iterator[Daemon]:
    made = Daemon(place.config)
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def office(place: Place, served: Daemon) -> officers.Office:
    del served
    made = officers.Office(place.dev)
    made.do("create-key", key=KEY, algorithm="ES256", activate=True)
    return made


def items(office: officers.Office, count: int) -> bool:
    """Whether the policy in force allows a batch of this size."""
    with office.client("issuer") as client:
        try:
            return all(each.ok for each in client.sign_batch(KEY, "JWS", [b"{}"] * count))
        except InvalidRequestError:
            return False


def reload(office: officers.Office) -> Any:
    with office.client("operator") as client:
        return client.reload()


def test_an_operator_alone_widens_no_policy(
    place: Place, served: Daemon, office: officers.Office
) -> None:
    assert not reload(office).policy_changed
    approved = place.policy
    place.put_policy(approved.replace("max_batch_items: 10", "max_batch_items: 20"))
    with pytest.raises(InvalidRequestError) as refused:
        reload(office)
    [violation] = refused.value.violations
    assert "signer policy propose" in violation.description
    assert (items(office, 10), items(office, 11)) == (True, False)

    assert served.stop() == 0
    served.start()  # neither does a restart take it
    assert (items(office, 10), items(office, 11)) == (True, False)

    told = office.propose("policy")
    with office.client("officer-b") as client:
        lines = client.operations.get(told.id).difference
    assert "~ facility clinic: max_batch_items 10 becomes 20" in lines
    office.approve(told.id)
    assert office.ended(told.id).state == "DONE"
    assert items(office, 20)
    assert not reload(office).policy_changed

    place.put_policy(approved)  # what was approved once is not in force again for that
    with pytest.raises(InvalidRequestError):
        reload(office)
    assert items(office, 20)
    place.put_policy(approved.replace("max_batch_items: 10", "max_batch_items: 20"))


def test_a_draft_holds_up_nothing_else(place: Place, office: officers.Office) -> None:
    before, config = place.policy, place.dir / "signer.yaml"
    config.write_text(f"{config.read_text()}log_level: debug\n")
    place.put_policy(before + "# a draft\n")
    (place.dir / "pki/server.pem").unlink()
    pki.server(place.dir / "pki", pki.authority(place.dir / "pki", "ca", "servers"))
    with pytest.raises(InvalidRequestError):
        reload(office)
    place.put_policy(before)
    with office.client("operator") as client:
        done = client.reload()
    assert not done.certificate_changed  # it was taken with the refused one
    assert (done.log_level, done.log_level_changed) == ("debug", False)  # and so was the level


def test_a_policy_that_changed_since_its_proposal_is_the_one_proposed(
    place: Place, office: officers.Office
) -> None:
    place.put_policy(place.policy.replace("max_batch_items: 20", "max_batch_items: 5"))
    proposed = office.propose("policy")
    place.put_policy(place.policy.replace("max_batch_items: 5", "max_batch_items: 4000"))
    office.approve(proposed.id)
    assert office.ended(proposed.id).state == "DONE"
    assert (items(office, 5), items(office, 6)) == (True, False)
    assert "4000" in place.policy  # somebody's draft is not overwritten
    place.put_policy(place.policy.replace("max_batch_items: 4000", "max_batch_items: 5"))
    assert not reload(office).policy_changed


def test_a_policy_that_names_an_officer_as_a_client_is_refused(
    place: Place, office: officers.Office
) -> None:
    before = place.policy
    place.put_policy(before.replace(plan.principal("issuer"), plan.principal("officer-a")))
    assert any("is a client in the policy" in text for text in office.problems("policy"))
    place.put_policy(before)


def test_no_officer_signs_and_no_issuer_decides(office: officers.Office) -> None:
    with office.client("officer-a") as client, pytest.raises(DeniedError):
        client.sign_batch(KEY, "JWS", [b"{}"])
    for name in ("issuer", "operator", "auditor"):
        with office.client(name) as client, pytest.raises(DeniedError):
            client.operations.prepare("policy", {})


def test_a_policy_that_was_put_in_force_by_hand_decides_nothing(
    place: Place, served: Daemon, office: officers.Office
) -> None:
    """Runs last: from here on the registry is not in order any more."""
    audit = place.dir / "audit"
    report = verified(audit, "signer/audit")
    assert (report["problems"], report["development"]) == ([], False)
    text = place.policy.replace("max_batch_items: 5", "max_batch_items: 4096").encode()
    content = b"11:policy.yaml,%d:%b," % (len(text), text)
    sha256 = hashlib.sha256(content).hexdigest()
    with closing(sqlite3.connect(place.dir / "registry.sqlite")) as connection, connection:
        connection.execute("INSERT INTO documents VALUES (?, ?)", (sha256, content))
        connection.execute("UPDATE revision SET value = value + 1, policy = ?", (sha256,))
    edge.until(lambda: served.reason().strip() == UNACCOUNTED, "the daemon has seen it")
    assert not items(office, 6)
    assert items(office, 5)

    def named() -> bool:
        report = verified(audit, "signer/audit", whole=False)
        return any("policy" in problem for problem in report["problems"])

    edge.until(named, "verify names what was not served")


def test_init_warns_of_a_certificate_that_ends_soon(tmp_path: Path) -> None:
    made = Place(tmp_path)
    file = made.certificate("officer-b")
    old = x509.load_pem_x509_certificate(file.read_bytes())
    names = list(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    authority = pki.authority(tmp_path / "pki", "client-ca", "clients")
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    short = authority.issue(old.public_key(), old.subject, usage, names, 10)  # type: ignore[arg-type] # it is one of ours
    file.write_bytes(short.public_bytes(Encoding.PEM))
    done = made.init("officer-a", "officer-b")
    assert done.code == 0
    assert f"the certificate of {plan.principal('officer-b')} ends soon: 20" in done.err
    assert plan.principal("officer-a") not in done.err
