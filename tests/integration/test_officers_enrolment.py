"""Facilities by the hundred and the thousand, from one file, served without a restart."""

import time
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer.algorithms import Algorithm
from signer.hsm.front.admin import open_admin
from tests.integration import edge
from tests.integration.hsm_token import SoftToken
from tests.integration.officers import Issuing, Office, check, csv_of

A = "facilities/01-001/keys/records"
HEADER = "facility,group,profile,clients,key,algorithm,bits"
ISSUER = "spiffe://dev.signer.example/issuer"


def keys_of(names: list[str]) -> list[str]:
    return [f"facilities/{name}/keys/records" for name in names]


def sign(office: Office, keys: list[str]) -> None:
    """Each key signs, and its own public key verifies that."""
    with office.client("issuer") as client:
        for key in keys:
            [item] = client.sign_batch(key, "JWS", [b"{}"])
            assert (item.error, item.key_version) == (None, f"{key}/versions/1")
            public = load_der_public_key(client.get_key_version(item.key_version).public_key)
            assert isinstance(public, EllipticCurvePublicKey)
            check(public, "JWS", b"{}", item.signature)


def test_sixty_facilities_are_served_by_the_same_daemon(office: Office, made: Any) -> None:
    names = [f"n-{number:03}" for number in range(60)]
    csv = csv_of(names, ISSUER)
    process = made.process
    with Issuing(office, [A], items=5) as issuing:
        proposed = office.propose("enrol", csv)
        told = office.get(proposed.id)
        assert "+ 60 facilities in the policy" in told.difference[0]
        office.approve(proposed.id)
        progress = []
        while (told := office.get(proposed.id)).state in ("APPROVED", "EXECUTING"):
            progress.append(told.done)
            time.sleep(0.05)
        issuing.signing(A)
    assert (told.state, told.done, told.total) == ("DONE", 60, 60), told.note
    assert all(one <= two for one, two in pairwise(progress))
    assert any(0 < done < 60 for done in progress), "it tells how far it is"
    assert issuing.refusals() == {}
    sign(office, keys_of(names[::10]))
    assert made.process is process
    assert made.running

    file = made.dir / "policy" / f"enrolled-{sha256(csv).hexdigest()[:16]}.yaml"
    assert all(f'"{name}"' in file.read_text() for name in names)
    with office.client("operator") as operator:
        reloaded = operator.reload()
        assert not reloaded.policy_changed
        assert told.result is not None
        assert reloaded.policy_sha256 == told.result["policy_sha256"]
    sign(office, keys_of(names[:1]))

    again = office.problems("enrol", csv)
    assert any("facility n-000 is in the policy already" in problem for problem in again)


MISTAKES = {
    "UPPER,01,records,x,records,ES256,": "facility must have 1 to 63",
    "w-03,01,records,x,records,ES512,": "algorithm must be one of ES256",
    "w-08,01,records,x,records,ES256,": "is in the file twice",
    "w-08,99,records,x,records,ES256,": "has another group, profile, clients, quotas or hours",
}


def test_a_wrong_file_is_refused_with_everything_that_is_wrong(office: Office, made: Any) -> None:
    good = f"good-1,01,records,{ISSUER},records,ES256,"
    lines = [HEADER, *(line.replace(",x,", f",{ISSUER},") for line in MISTAKES), good, ""]
    before = sorted(path.name for path in (made.dir / "policy").iterdir())
    problems = office.problems("enrol", "\n".join(lines).encode())
    for number, text in enumerate(MISTAKES.values(), start=2):
        assert any(p.startswith(f"line {number}: ") and text in p for p in problems), problems
    assert not any("good-1" in problem for problem in problems)
    assert sorted(path.name for path in (made.dir / "policy").iterdir()) == before
    with office.client("officer-a") as client:
        assert not [key for key in client.list_keys() if "/w-" in key.name or "good" in key.name]


def softhsm_rate(token: SoftToken, start: int, count: int) -> float:
    """Keys a second of a plain loop on a token of its own, which has ``start`` keys already."""
    with open_admin(token.settings, token.state) as admin:
        began = time.monotonic()
        for number in range(start, start + count):
            admin.generate(Algorithm.ES256, 0, sha256(b"%d" % number).digest()[:16], f"k-{number}")
        return count / (time.monotonic() - began)


def test_the_log_accounts_for_all_of_it(office: Office) -> None:
    office.log_in_order()


@pytest.mark.torture
@pytest.mark.parametrize(("facilities", "rounds", "least"), [(2000, 2, 0.5)])
def test_thousands_at_nearly_the_hsm_s_own_rate(
    appliance: Any, tmp_path: Path, facilities: int, rounds: int, least: float
) -> None:
    """Alternating: a part of the facilities, and as many keys of a plain loop.

    Few parts, for a list of thousands is one operation: each costs a second before its first key.
    """
    token = SoftToken(tmp_path / "hsm")
    part = facilities // rounds
    ours, plain = [], []
    with edge.own(appliance, tmp_path) as made:
        office = Office(made.dev)
        softhsm_rate(token, 10_000_000, len(made.dev["keys"]) + 1)
        with Issuing(office, [A], items=1) as issuing:
            issuing.signing(A)
        for number in range(rounds):
            plain.append(softhsm_rate(token, number * part, part))
            names = [f"t-{number:02}-{n:04}" for n in range(part)]
            began = time.monotonic()
            told = office.do("enrol", csv_of(names, ISSUER), seconds=600)
            ours.append(part / (time.monotonic() - began))
            assert told.state == "DONE", told.note
            sign(office, keys_of(names[:: part // 5]))
    ratio = sum(1 / rate for rate in plain) / sum(1 / rate for rate in ours)
    rates = ", ".join(f"{one:.0f}/{two:.0f}" for one, two in zip(ours, plain, strict=True))
    print(f"\n{facilities} facilities, keys a second (enrolled/plain): {rates}; ratio {ratio:.2f}")
    assert ratio >= least
