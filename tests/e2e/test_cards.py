"""SMART Health Cards are accepted by kill-the-clipboard, with the keys that we export."""

import json
from pathlib import Path
from typing import Any

from tests.e2e import verifiers
from tests.e2e.samples import bundle
from tests.e2e.sources import of_appliance


def test_cards_are_read_as_they_were_written(appliance: Any, tmp_path: Path) -> None:
    bundles = [bundle(), bundle(total=1.50), bundle(note="\U0001d51b Đặng ~")]
    payloads = [json.dumps(each, indent=2).encode() for each in bundles]
    payloads[0] = payloads[0].replace(b'"completed"', b'  "completed" ')
    who = of_appliance(appliance, "moh/cards", tmp_path)
    cards = [each.made.decode() for each in who.signed("SHC", payloads)]
    verdicts = verifiers.judge("kill-the-clipboard", cards, who.trust.jwks)
    assert [verdict["bundle"] for verdict in verdicts] == bundles


def test_a_card_of_another_key_is_refused(appliance: Any, tmp_path: Path) -> None:
    who = of_appliance(appliance, "moh/cards", tmp_path)
    [card] = who.signed("SHC", [json.dumps(bundle()).encode()])
    assert who.trust.jwks is not None
    keys = json.loads(who.trust.jwks.read_text())["keys"]
    kid = next(key["kid"] for key in keys if key["alg"] == "ES256")
    others = [key for key in keys if key["alg"] == "ES256"]
    pairs = zip(others, others[1:] + others[:1], strict=True)
    turned = [{**mine, "kid": theirs["kid"]} for mine, theirs in pairs]
    assert kid in {key["kid"] for key in turned}
    file = tmp_path / "turned.json"
    file.write_text(json.dumps({"keys": turned}))
    [verdict] = verifiers.judge("kill-the-clipboard", [card.made.decode()], file)
    assert verdict["refused"].startswith("SignatureVerificationError")
