"""The demo: records become certificates with two signatures, and programs of others verify them.

Run by `make demo`. Everything it creates is in build/demo. Exits with 0 only if every signature
was accepted, the appliance ended cleanly, its audit log has proven one signature and betrayed
every bit that was changed, and the QR code of a certificate was read from its image and accepted.
"""

import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
from http.client import HTTPConnection
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import segno

from signer.tools.dev.appliance import DevAppliance
from tests.e2e import verifiers
from tests.e2e.auditor import Auditor
from tests.synthetic import Person, as_csv, people

_FOLDER = verifiers.ROOT / "build" / "demo"
_RECORDS, _DRAWN = 1000, 3
_KEY = "facilities/moh/keys/dcc-cosigned"
_METRICS = ("signer_items_total{", "signer_workers{", "signer_ready", "signer_key_versions{")


class Issued(NamedTuple):
    """What `signer issue` made: from its journal certificates and the facilities' records, the
    files of texts, certificates a second.
    """

    certificates: list[dict[str, Any]]
    cosigned: list[dict[str, Any]]
    files: list[Path]
    rate: float


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def keys_of(appliance: DevAppliance) -> dict[str, dict[str, Any]]:
    return {key["name"]: key for key in appliance.dev["keys"]}


def issue(appliance: DevAppliance, name: str, records: list[Person], *words: str) -> Issued:
    """Has `signer issue` make certificates; returns those it made."""
    file, out = _FOLDER / f"{name}.csv", _FOLDER / name
    file.write_text(as_csv(records))
    command = [sys.executable, "-m", "signer", "issue", "--json", *words, "--key", _KEY]
    command += ["--client", str(appliance.dir / "client-issuer.yaml"), "--out", str(out), str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"the demo failed: signer issue ended with {done.returncode}: {done.stdout}")
    summary = json.loads(done.stdout)
    lines = map(json.loads, (out / "issued.jsonl").read_text().splitlines())
    made, cosigned = list[dict[str, Any]](), list[dict[str, Any]]()
    for line in lines:
        made += line.get("issued", ())
        cosigned += line.get("cosigned", ())
    with (out / "certificates.csv").open(newline="") as listed:
        files = [out / row["file"] for row in csv.DictReader(listed)]
    return Issued(made, cosigned, files, len(records) / summary["seconds"])


def national_flow(appliance: DevAppliance) -> Issued:
    """Facilities sign records, the ministry signs certificates; returns those that are drawn."""
    say("\n2. Facilities sign records; beside them, the ministry signs certificates")
    records = people(_RECORDS)
    made = issue(appliance, "issued", records)
    say(f"  signer issue        {_RECORDS:,} records in a CSV file, two signatures for each")
    say(f"    {made.rate:,.0f} a second, from the file to the texts")
    drawn = issue(appliance, "drawn", records[:_DRAWN], "--qr", "png", "--pages", "a5")
    say(f"  and drawn           {_DRAWN} of them as QR codes and pages to print")

    say("\n3. Verifying with programs that share no code with the appliance")
    keys, by_facility = keys_of(appliance), itemgetter("facility")
    texts = [each["text"] for each in made.certificates]
    claims = verifiers.hcert(texts, Path(keys[_KEY]["certificate"]))
    say(f"  python-cwt accepts {len(claims):,} certificates, issued by {claims[0]['iss']}")
    for facility, group in groupby(sorted(made.cosigned, key=by_facility), by_facility):
        key, of_one = keys[f"facilities/{facility}/keys/records"], list(group)
        tokens = [each["signed"] for each in of_one]
        verdicts = verifiers.jws(tokens, Path(key["public_key"]), key["algorithm"])
        say(f"  jwcrypto accepts {len(verdicts)} records signed by facility {facility}")
    if {claim["dcc"]["v"][0]["ci"] for claim in claims} != {
        each["uvci"] for each in made.certificates
    }:
        sys.exit("the demo failed: python-cwt read other certificates than were signed")
    must_reject(texts[0], Path(keys["facilities/moh/keys/dcc-rsa"]["certificate"]))
    return drawn


def must_reject(text: str, other: Path) -> None:
    try:
        verifiers.hcert([text], other)
    except verifiers.RejectedError:
        say("  python-cwt rejects one of them with another key's certificate, as it must")
    else:
        sys.exit("the demo failed: a certificate verified with a key that did not sign it")


def show_metrics(appliance: DevAppliance) -> None:
    address = urlsplit(appliance.dev["metrics"])
    connection = HTTPConnection(address.hostname or "", address.port, timeout=10)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    lines = [line for line in page.splitlines() if line.startswith(_METRICS)]
    if not any(line.startswith(_METRICS[0]) for line in lines):
        sys.exit("the demo failed: the metrics know of no signature")
    say(f"\n4. What the appliance says of itself at {appliance.dev['metrics']}/metrics")
    for line in lines:
        if not line.endswith(" 0.0"):
            say(f"  {line}")


def prove_offline(auditor: Auditor, message: Path) -> None:
    """Proves one certificate from a copy of the log: with our program, and without it."""
    name = message.relative_to(verifiers.ROOT)
    say("\n5. Offline: an auditor with a copy of the audit log and the public key of the first day")
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
    say("\n6. One bit is changed")
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


def in_terminal(text: str, columns: int) -> str:
    """Returns a QR code in half blocks, of the highest level that fits so many columns, or "".

    A code on a screen is not creased or stained: every level will do.
    """
    for level in "qml":
        code = segno.make_qr(text, error=level, boost_error=False)
        if code.symbol_size()[0] <= columns:
            drawn = io.StringIO()
            code.terminal(out=drawn, compact=True)
            return drawn.getvalue()
    return ""


def on_paper(drawn: Issued, certificate: Path) -> None:
    """Shows one certificate as a QR code, and has others read its image and verify it."""
    text, image = drawn.files[0].read_text().strip(), drawn.files[0].with_suffix(".png")
    say("\n7. A certificate on paper\n")
    columns = shutil.get_terminal_size().columns
    say(in_terminal(text, columns) or f"  {columns} columns are too few for its QR code: open")
    images = [file.with_suffix(".png") for file in drawn.files]
    read = verifiers.qr_codes(images)
    claims = verifiers.hcert(read, certificate)
    [entry] = claims[0]["dcc"]["v"]
    say(f"  {image.relative_to(verifiers.ROOT)}, and a page to print beside it")
    say(f"  zxing-cpp reads {len(read)} of {len(images)} images; python-cwt accepts what it read:")
    say(f"    dose {entry['dn']} of {entry['sd']} on {entry['dt']}, {entry['ci']}")
    if read != [each["text"] for each in drawn.certificates]:
        sys.exit("the demo failed: the images hold other texts than were signed")


def main() -> None:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir(parents=True)
    appliance, auditor = DevAppliance(_FOLDER / "appliance"), Auditor(_FOLDER / "auditor")
    say("1. Provisioning and starting a development appliance on SoftHSM")
    appliance.init()
    auditor.take_key(appliance.dir)
    seconds = appliance.start()
    try:
        say(f"  ready after {seconds:.1f} s with {len(keys_of(appliance))} keys")
        drawn = national_flow(appliance)
        show_metrics(appliance)
    finally:
        code = appliance.stop()
    if code:
        sys.exit(f"the demo failed: the appliance ended with {code}:\n{appliance.log_end()}")
    auditor.take_copy(appliance.dir)
    prove_offline(auditor, drawn.files[0])
    change_one_bit(auditor, drawn.files[0])
    on_paper(drawn, Path(keys_of(appliance)[_KEY]["certificate"]))
    say(f"\nDone. The appliance has stopped; what it signed is in {_FOLDER / 'issued'}.")


if __name__ == "__main__":
    main()
