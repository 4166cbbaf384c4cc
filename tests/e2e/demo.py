"""The demo: an appliance signs certificates, and programs of others verify them.

Run by `make demo`. Everything it creates is in build/demo. Exits with 0 only if
every signature was accepted, the appliance ended cleanly, and its audit log has
proven one signature and betrayed every bit that was changed.
"""

import hashlib
import io
import json
import shutil
import sys
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import segno

from signer.client import SignerClient
from signer.tools.dev.appliance import DevAppliance
from tests.e2e import verifiers
from tests.e2e.auditor import Auditor
from tests.e2e.samples import vaccinations

_FOLDER = verifiers.ROOT / "build" / "demo"
_SHOWN = 2000
_METRICS = ("signer_items_total{", "signer_workers{", "signer_ready", "signer_key_versions{")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def sign(client: SignerClient, key: str, message_format: str, payloads: Sequence[bytes]) -> Any:
    """Signs a few certificates, then many of them in batches; returns the few."""
    few = list(client.sign(key, message_format, payloads))
    began = time.monotonic()
    many = client.sign(key, message_format, (payloads[n % len(payloads)] for n in range(_SHOWN)))
    failures = [result.error for result in (*few, *many) if result.error is not None]
    if failures:
        sys.exit(f"the demo failed: {len(failures)} items have no signature: {failures[0]}")
    rate = _SHOWN / (time.monotonic() - began)
    say(f"  {message_format:<8} {_SHOWN:,} in batches, {rate:,.0f}/s; version {few[0].key_version}")
    return [result.signature for result in few]


def keys_of(appliance: DevAppliance) -> dict[str, dict[str, Any]]:
    return {key["name"]: key for key in appliance.dev["keys"]}


def sign_and_verify(appliance: DevAppliance, payloads: dict[str, bytes]) -> dict[str, str]:
    """Has everything signed and verified; returns the HC1 texts by name."""
    keys, bodies = keys_of(appliance), list(payloads.values())
    dcc = keys["facilities/moh/keys/dcc"]
    records = keys["facilities/01-001/keys/records"]
    say("\n2. Signing through gRPC with mutual TLS")
    with appliance.client() as client:
        texts = [text.decode() for text in sign(client, dcc["name"], "HCERT", bodies)]
        tokens = [token.decode() for token in sign(client, records["name"], "JWS", bodies)]
        raw = sign(client, records["name"], "MESSAGE", bodies)
    write(payloads, {".hc1": texts, ".jws": tokens})

    say("\n3. Verifying with programs that share no code with the appliance")
    claims = verifiers.hcert(texts, Path(dcc["certificate"]))
    if [claim["dcc"] for claim in claims] != [json.loads(body) for body in bodies]:
        sys.exit("the demo failed: python-cwt read another certificate than was signed")
    say(f"  python-cwt accepts {len(claims)} HC1 texts, issued by {claims[0]['iss']}")
    public_key = Path(records["public_key"])
    verdicts = verifiers.jws(tokens, public_key, records["algorithm"])
    if [verdict["payload"].encode() for verdict in verdicts] != bodies:
        sys.exit("the demo failed: jwcrypto read another record than was signed")
    say(f"  jwcrypto accepts {len(verdicts)} JWS")
    for body, signature in zip(bodies, raw, strict=True):
        verifiers.openssl(body, signature, public_key, records["algorithm"])
    say(f"  openssl accepts {len(raw)} raw signatures")
    must_reject(texts[0], Path(keys["facilities/moh/keys/dcc-rsa"]["certificate"]))
    return dict(zip(payloads, texts, strict=True))


def must_reject(text: str, other: Path) -> None:
    try:
        verifiers.hcert([text], other)
    except verifiers.RejectedError:
        say("  python-cwt rejects one of them with another key's certificate, as it must")
    else:
        sys.exit("the demo failed: a certificate verified with a key that did not sign it")


def write(payloads: dict[str, bytes], outputs: dict[str, list[str]]) -> None:
    folder = _FOLDER / "signed"
    folder.mkdir()
    for suffix, texts in outputs.items():
        for name, text in zip(payloads, texts, strict=True):
            (folder / f"{name}{suffix}").write_text(text)


def show_qr_code(name: str, text: str) -> None:
    code = segno.make_qr(text, error="q", boost_error=False)
    files = [_FOLDER / "signed" / f"{name}.{kind}" for kind in ("png", "svg")]
    for file in files:
        code.save(str(file), scale=4)
    drawn = io.StringIO()
    code.terminal(out=drawn, compact=True)
    say(f"\n4. The certificate {name} as a QR code\n\n{drawn.getvalue()}")
    say("  " + "  ".join(str(file.relative_to(verifiers.ROOT)) for file in files))


def show_metrics(appliance: DevAppliance) -> None:
    address = urlsplit(appliance.dev["metrics"])
    connection = HTTPConnection(address.hostname or "", address.port, timeout=10)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    lines = [line for line in page.splitlines() if line.startswith(_METRICS)]
    if not any(line.startswith(_METRICS[0]) for line in lines):
        sys.exit("the demo failed: the metrics know of no signature")
    say(f"\n5. What the appliance says of itself at {appliance.dev['metrics']}/metrics")
    for line in lines:
        if not line.endswith(" 0.0"):
            say(f"  {line}")


def prove_offline(auditor: Auditor, message: Path) -> None:
    """Proves one certificate from a copy of the log: with our program, and without it."""
    name = message.relative_to(verifiers.ROOT)
    say("\n6. Offline: an auditor with a copy of the audit log and the public key of the first day")
    [found] = auditor.find(message)
    say(f"  signer audit find   {name} was signed here: record {found['intent']}")
    auditor.prove(message)
    verified = auditor.verify_proof()
    if verified.code:
        sys.exit(f"the demo failed: the proof is refused: {verified.errors}")
    proven = json.loads(verified.out)
    policy = proven["policy_sha256"]
    proof = auditor.proof.relative_to(verifiers.ROOT)
    say(f"  signer audit prove  {proof}; without the log it proves")
    say(f"    when  asked {proven['asked']}, answered {proven['answered']}")
    say(f"    whom  {proven['principal']}, with {proven['key_version']}")
    say(f"    rule  {proven['rule']}, in audit/policies/{policy[:16]}...")
    elsewhere = verifiers.proof(auditor.proof, message, auditor.key)
    kept = (auditor.copy / "policies" / policy).read_bytes()
    if hashlib.sha256(kept).hexdigest() != elsewhere["policy"]:
        sys.exit("the demo failed: the policy of the proof is not the one that was kept")
    say(f"  hashlib and cryptography agree, under a signed tree of {elsewhere['records']} records")


def change_one_bit(auditor: Auditor, message: Path) -> None:
    """Flips a bit of the log, then one of the proof: both must be found."""
    say("\n7. One bit is changed")
    whole = auditor.verify_log()
    if whole.code:
        sys.exit(f"the demo failed: the copy of the log is not in order: {whole.errors}")
    flipped = auditor.flip_in_log()
    say(f"  in byte {flipped.place:,} of {flipped.path.name}, inside {flipped.where}:")
    told = auditor.verify_log()
    if told.code != 1 or flipped.path.name not in told.errors:
        sys.exit(f"the demo failed: a changed bit was not found: {told.errors}")
    say(f"    signer audit verify, exit code 1: {told.errors.splitlines()[0]}")
    flipped = auditor.flip_in_proof()
    say(f"  in byte {flipped.place:,} of the proof:")
    told = auditor.verify_proof()
    if told.code != 1:
        sys.exit("the demo failed: a proof with a changed bit was accepted")
    say(f"    signer audit verify --proof, exit code 1: {told.errors.splitlines()[0]}")
    try:
        verifiers.proof(auditor.proof, message, auditor.key)
    except verifiers.RejectedError:
        say("    hashlib and cryptography refuse it, too")
    else:
        sys.exit("the demo failed: the other program accepted a proof with a changed bit")


def main() -> None:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir(parents=True)
    payloads = vaccinations()
    appliance, auditor = DevAppliance(_FOLDER / "appliance"), Auditor(_FOLDER / "auditor")
    say("1. Provisioning and starting a development appliance on SoftHSM")
    appliance.init()
    auditor.take_key(appliance.dir)
    seconds = appliance.start()
    try:
        say(f"  ready after {seconds:.1f} s with {len(keys_of(appliance))} keys")
        texts = sign_and_verify(appliance, payloads)
        show_qr_code(*next(iter(texts.items())))
        show_metrics(appliance)
    finally:
        code = appliance.stop()
    if code:
        sys.exit(f"the demo failed: the appliance ended with {code}:\n{appliance.log_end()}")
    auditor.take_copy(appliance.dir)
    message = _FOLDER / "signed" / f"{next(iter(texts))}.hc1"
    prove_offline(auditor, message)
    change_one_bit(auditor, message)
    say(f"\nDone. The appliance has stopped; what it signed is in {_FOLDER / 'signed'}.")


if __name__ == "__main__":
    main()
