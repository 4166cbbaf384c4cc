"""A proof of the audit log convinces a program that shares no code with the appliance."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.appliances import Appliance
from tests.commands import signer
from tests.e2e import verifiers
from tests.e2e.auditor import Auditor, Said

FLIPS_ELSEWHERE = 8
FLIPS = 3
SIGNED = {"HCERT": ("facilities/moh/keys/dcc", 37), "JWS": ("facilities/01-001/keys/records", 21)}
"""By format the key that signs, and how many items; these leave ragged trees and leaves."""
OLDER = Path(__file__).parents[1] / "upgrade" / "schema-0002"
"""What was signed, and its log, when the leaf of a column was one item."""


def auditor_at(folder: Path) -> Auditor:
    return Auditor(folder, lambda *arguments: Said(*signer(*arguments)))


class Case(NamedTuple):
    """An auditor, and two messages out of the middle of their batches."""

    auditor: Auditor
    messages: dict[str, Path]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, vaccinations: dict[str, bytes]) -> Case:
    folder = tmp_path_factory.mktemp("audited")
    appliance, auditor = Appliance(folder / "dev"), auditor_at(folder / "auditor")
    appliance.init()
    auditor.take_key(appliance.dir)
    payload, messages = next(iter(vaccinations.values())), {}
    with appliance, appliance.client() as client:
        for name, (key, count) in SIGNED.items():
            results = client.sign_batch(key, name, [payload] * count)
            messages[name] = folder / name
            messages[name].write_bytes(results[count // 2].signature)
    auditor.take_copy(appliance.dir)
    return Case(auditor, messages)


def elsewhere(case: Case, name: str) -> dict[str, Any]:
    return verifiers.proof(case.auditor.proof, case.messages[name], case.auditor.key)


@pytest.mark.parametrize("name", SIGNED)
def test_both_programs_read_the_same_from_a_proof(case: Case, name: str) -> None:
    case.auditor.prove(case.messages[name])
    ours = json.loads(case.auditor.verify_proof().out)
    theirs = elsewhere(case, name)
    assert theirs["format"] == ours["format"] == name
    assert theirs["principal"] == ours["principal"]
    assert theirs["key_version"] == ours["key_version"] == f"{SIGNED[name][0]}/versions/1"
    assert theirs["rule"] == ours["rule"]
    assert theirs["policy"] == ours["policy_sha256"]
    assert theirs["records"] == ours["checkpoint"]
    assert (case.auditor.copy / "policies" / theirs["policy"]).is_file()


def test_both_programs_read_proofs_of_an_older_log(tmp_path: Path) -> None:
    auditor, message = auditor_at(tmp_path / "auditor"), tmp_path / "message"
    auditor.take_key(OLDER)
    auditor.take_copy(OLDER)
    signed = json.loads((OLDER / "signed.json").read_text())[0]
    message.write_text(signed["output"])
    assert '"item":' in auditor.prove(message)
    ours = json.loads(auditor.verify_proof().out)
    theirs = verifiers.proof(auditor.proof, message, auditor.key)
    assert theirs["key_version"] == ours["key_version"] == f"{signed['key']}/versions/1"
    message.write_text(signed["output"].replace(".", ".A", 1))
    with pytest.raises(verifiers.RejectedError, match="another message"):
        verifiers.proof(auditor.proof, message, auditor.key)


def test_a_proof_of_one_message_is_none_of_another(case: Case) -> None:
    case.auditor.prove(case.messages["JWS"])
    with pytest.raises(verifiers.RejectedError, match="another message"):
        elsewhere(case, "HCERT")


def test_the_key_of_another_log_verifies_nothing(case: Case) -> None:
    case.auditor.prove(case.messages["JWS"])
    key = OLDER / "audit" / "audit.pub.pem"
    with pytest.raises(verifiers.RejectedError, match="another key"):
        verifiers.proof(case.auditor.proof, case.messages["JWS"], key)


@pytest.mark.parametrize("name", SIGNED)
def test_neither_program_takes_a_proof_with_another_byte(case: Case, name: str) -> None:
    case.auditor.prove(case.messages[name])
    for turn in range(FLIPS_ELSEWHERE):
        flipped = case.auditor.flip_in_proof()
        with pytest.raises(verifiers.RejectedError):
            elsewhere(case, name)
        if turn < FLIPS:
            said = case.auditor.verify_proof()
            assert (said.code, json.loads(said.out).keys()) == (1, {"error"}), flipped
            assert "Traceback" not in said.errors, flipped
        flipped.mend()


def test_a_flipped_bit_in_the_copy_is_found_and_named(case: Case) -> None:
    assert case.auditor.verify_log().code == 0
    for _ in range(FLIPS):
        flipped = case.auditor.flip_in_log()
        whole = case.auditor.verify_log()
        assert whole.code == 1
        assert f"wrong: {flipped.path.name}" in whole.errors, flipped
        flipped.mend()
    assert case.auditor.verify_log().code == 0
