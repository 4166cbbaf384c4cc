"""SMART Health Cards are accepted by kill-the-clipboard, with the keys that we export."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.commands import signer
from tests.e2e.test_verifiers import sign

KEY = "facilities/moh/keys/cards"


def bundle(**changes: Any) -> dict[str, Any]:
    """Two doses of nobody, as the framework's implementation guide has them."""
    patient = {"resourceType": "Patient", "name": [{"family": "Nguyễn", "given": ["Văn", "Mẫu"]}]}
    doses = [
        {
            "resourceType": "Immunization",
            "status": "completed",
            "vaccineCode": {"coding": [{"system": "http://hl7.org/fhir/sid/cvx", "code": "207"}]},
            "patient": {"reference": "resource:0"},
            "occurrenceDateTime": day,
            "lotNumber": "0000007",
        }
        for day in ("2021-06-11", "2021-07-02")
    ]
    entries = [
        {"fullUrl": f"resource:{index}", "resource": resource}
        for index, resource in enumerate([patient | {"birthDate": "1979-04-14"}, *doses])
    ]
    return {"resourceType": "Bundle", "type": "collection", "entry": entries, **changes}


@pytest.fixture(scope="module")
def jwks(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The issuer's keys, to be published at its URL with /.well-known/jwks.json after it."""
    file = tmp_path_factory.mktemp("cards") / "jwks.json"
    client = appliance.dir / "client-issuer.yaml"
    whose = ("--facility", "moh", "--client", client)
    done = signer("keys", "export", "--form", "jwks", *whose, "--out", file)
    assert done.code == 0, done.err
    return file


def verify(node: Path, jwks: Path, cards: list[bytes]) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["node", str(node / "verify_card.mjs"), str(jwks)],
        input=b"\n".join(cards),
        capture_output=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_cards_pass_kill_the_clipboard(appliance: Any, node: Path, jwks: Path) -> None:
    bundles = [bundle(), bundle(total=1.50), bundle(note="\U0001d51b Đặng ~")]
    payloads = [json.dumps(each, indent=2).encode() for each in bundles]
    payloads[0] = payloads[0].replace(b'"completed"', b'  "completed" ')
    cards = sign(appliance, KEY, "SHC", payloads)
    assert [verdict["bundle"] for verdict in verify(node, jwks, cards)] == bundles


def test_a_changed_card_is_rejected(appliance: Any, node: Path, jwks: Path) -> None:
    [card] = sign(appliance, KEY, "SHC", [json.dumps(bundle()).encode()])
    middle = len(card) // 2 // 2 * 2 + 1  # the first of two digits
    other = b"21" if card[middle : middle + 2] != b"21" else b"22"
    [verdict] = verify(node, jwks, [card[:middle] + other + card[middle + 2 :]])
    assert "refused" in verdict


def test_a_card_of_another_key_is_rejected(
    appliance: Any, node: Path, jwks: Path, tmp_path: Path
) -> None:
    [card] = sign(appliance, KEY, "SHC", [json.dumps(bundle()).encode()])
    keys = json.loads(jwks.read_text())["keys"]
    kid = next(key["kid"] for key in keys if key["alg"] == "ES256")
    others = [key for key in keys if key["alg"] == "ES256"]
    pairs = zip(others, others[1:] + others[:1], strict=True)
    turned = [{**mine, "kid": theirs["kid"]} for mine, theirs in pairs]
    assert kid in {key["kid"] for key in turned}
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": turned}))
    [verdict] = verify(node, file, [card])
    assert verdict["refused"].startswith("SignatureVerificationError")
