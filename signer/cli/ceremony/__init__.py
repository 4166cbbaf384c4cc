"""``signer ceremony``: two officers create a key step by step, and sign a transcript."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from cryptography.hazmat.primitives.serialization import Encoding

from signer import __version__
from signer.algorithms import Algorithm
from signer.cli.ceremony import transcript
from signer.cli.connection import connect
from signer.cli.operations import flow
from signer.cli.operations.arguments import KEY, certificate_in, principal_of, utc
from signer.cli.operations.following import WAIT_SECONDS, follow, result_lines
from signer.cli.operations.requested import check_foreign, request
from signer.cli.options import FILE, FOLDER, NEW_FOLDER, token_option, yes_option
from signer.cli.output import explained, say, write_file
from signer.client import Operation
from signer.errors import OperatorError
from signer.text import plain

_NEEDED = {
    "name": "NAME",
    "first": "--client",
    "second": "--second",
    "algorithm": "--algorithm",
    "out": "--out",
    "witnesses": "--witness",
}
"""The required options, by the names of their parameters."""

_OPTIONS = _NEEDED | {"bits": "--bits", "token": "--token", "subject": "--subject", "yes": "--yes"}


@click.command()
@click.argument("name", metavar="[NAME]", type=KEY, required=False)
@click.option("--client", "first", type=FILE, help="Who proposes: a client file.")
@click.option("--second", type=FILE, help="Who approves: a client file.")
@click.option("--algorithm", type=click.Choice([str(a) for a in Algorithm], case_sensitive=False))
@click.option("--bits", type=int, default=0, help="RSA only: 2048, 3072 or 4096.")
@token_option
@click.option("--subject", metavar="DN", default="", help='Of the request, as in "CN=DCC 1,C=VN".')
@click.option(
    "--witness", "witnesses", metavar="NAME", multiple=True, help="Who is present; repeatable."
)
@click.option("--out", metavar="DIR", type=NEW_FOLDER, help="A new folder.")
@yes_option
@click.option(
    "--verify",
    "verified",
    metavar="DIR",
    type=FOLDER,
    help="Check the transcript of a ceremony instead.",
)
@click.option(
    "--officer", "officers", metavar="CERT", type=FILE, multiple=True, help="With --verify."
)
def ceremony(*, verified: Path | None, officers: tuple[Path, ...], **options: Any) -> None:
    """Guides two officers through creating the key NAME, and writes a signed transcript.

    It announces each step and asks before it goes on. The transcript contains what was
    approved, the token, the key's fingerprint, the attributes that the token read back, the
    certification request and the witnesses; both officers sign it.

    \b
      signer ceremony facilities/moh/keys/dcc --client officer-a.yaml \\
        --second officer-b.yaml \\
        --algorithm ES256 --subject "CN=DCC 1,O=Ministry of Health,C=VN" \\
        --witness "the auditor on duty" --out ceremony-2030-01-01

    \b
    Anyone can check it later, offline, with the certificates of both officers:
      signer ceremony --verify ceremony-2030-01-01 --officer officer-a.pem \\
        --officer officer-b.pem
    """
    if verified is not None:
        given = [option for key, option in _OPTIONS.items() if options[key]]
        if given:
            raise click.UsageError(f"--verify checks a transcript: omit {', '.join(given)}")
        if not officers:
            raise click.UsageError("--verify needs the officers' certificates: --officer CERT")
        _verify(verified, officers)
        return
    if officers:
        raise click.UsageError("--officer is for --verify")
    missing = [option for key, option in _NEEDED.items() if not options[key]]
    if missing:
        raise click.UsageError(f"a ceremony needs {', '.join(missing)} as well")
    _hold(_CeremonyPlan(**options))


def _verify(folder: Path, officers: tuple[Path, ...]) -> None:
    certificates = {
        principal_of(one): one.public_bytes(Encoding.DER) for one in map(certificate_in, officers)
    }
    members = transcript.verify(folder, certificates)
    result = members["result"]
    say(f"{folder} is in order")
    say(f"  key        {result['key_version']}, {result['algorithm']}")
    say(f"  public key SHA-256 {result['public_key_sha256']}")
    for participant in members["participants"]:
        say(f"  signed by  {participant['officer']}")


@dataclass(frozen=True, slots=True)
class _CeremonyPlan:
    """The key that a ceremony creates, its officers and witnesses, and the folder of its record."""

    name: str
    first: Path
    second: Path
    algorithm: str
    bits: int
    token: str
    subject: str
    witnesses: tuple[str, ...]
    out: Path
    yes: bool


def _hold(plan: _CeremonyPlan) -> None:
    """Holds the ceremony; raises OperatorError if it cannot continue."""
    flow.must_confirm(yes=plan.yes)
    began = datetime.now(UTC)
    one, two = flow.officer(plan.first), flow.officer(plan.second)
    if one.principal == two.principal:
        raise OperatorError(f"both client files belong to {one.principal}: two officers are needed")
    with explained(plan.out, "made"):  # before the key
        plan.out.mkdir(parents=True, exist_ok=True)
        if any(plan.out.iterdir()):
            raise OperatorError(f"{plan.out} is not empty: name a new folder for this ceremony")
    officers = _officers(plan, one, two)
    _say(f"This creates the key {plan.name} ({plan.algorithm}) with two officers:")
    _say(f"  {one.principal} proposes, {two.principal} approves.")
    _say(f"Witnesses: {'; '.join(plan.witnesses)}.")
    identity = _propose(plan, one)
    _approve(plan, two, identity)
    operation = _await(plan, identity)
    _write(plan, operation, began, (one, two), officers)
    _say_next(plan, operation)


def _say(*lines: str) -> None:
    for line in lines:
        say(plain(line))


def _officers(plan: _CeremonyPlan, *both: flow.OfficerKey) -> dict[str, bytes]:
    """Returns the certificates of all officers, by principal: others may have to approve too."""
    with connect(plan.first) as client:
        officers = dict(client.operations.officers().officers)
    if unknown := [one.principal for one in both if one.principal not in officers]:
        raise OperatorError(f"not an officer of the appliance: {', '.join(unknown)}")
    return officers


def _propose(plan: _CeremonyPlan, me: flow.OfficerKey) -> str:
    _say("", f"Step 1: {me.principal} proposes.")
    arguments = {
        "key": plan.name,
        "algorithm": plan.algorithm,
        "bits": plan.bits,
        "token": plan.token,
        "activate": False,
        "sign_until": 0,
        "subject": plan.subject,
    }
    with connect(plan.first) as client:
        content = flow.prepare(client, request("create-key", arguments), me, to_stderr=False)
        flow.confirm("Does the first officer sign and propose this?", yes=plan.yes)
        operation = client.operations.propose(content, me.sign(content), timeout=flow.LONG)
    _say(f"It is proposed: operation {operation.id}.")
    return operation.id


def _approve(plan: _CeremonyPlan, me: flow.OfficerKey, identity: str) -> None:
    _say("", f"Step 2: {me.principal} reads it from the appliance.")
    with connect(plan.second) as client:
        operation = client.operations.get(identity)
        check_foreign(operation.content, identity, me.principal)
        flow.print_signed(operation.content, to_stderr=False)
        flow.print_difference(operation.difference, to_stderr=False)
        _say("Compare the SHA-256 with the one above.")
        flow.confirm("Does the second officer sign and approve this?", yes=plan.yes)
        operation = client.operations.approve(
            identity, me.sign(operation.content), timeout=flow.LONG
        )
    if operation.state == "PROPOSED":
        _say(
            f"{flow.signed_count(operation)}; the ceremony continues when others approve:"
            f" signer operations approve {identity}"
        )


def _await(plan: _CeremonyPlan, identity: str) -> Operation:
    _say("", "Step 3: the appliance creates the key inside the HSM.")
    with connect(plan.first) as client:
        follow(client, identity, WAIT_SECONDS)
        operation = client.operations.get(identity)
    if operation.state != "DONE" or operation.result is None:
        raise OperatorError(
            f"operation {identity} is {operation.state}: {plain(operation.note) or 'no reason'};"
            " no transcript is written"
        )
    _say(f"It has created {operation.result.get('key_version')}:")
    _say(*(f"  {line}" for line in result_lines(operation.result)))
    return operation


def _write(
    plan: _CeremonyPlan,
    operation: Operation,
    began: datetime,
    both: tuple[flow.OfficerKey, flow.OfficerKey],
    officers: dict[str, bytes],
) -> None:
    _say("", "Step 4: both officers sign the transcript of what was done.")
    signed = [signature.signed for signature in operation.signatures if signature.signed]
    times = {
        "began": began,
        "proposed": operation.proposed,
        "approved": max(signed, default=None),
        "made": operation.changed,
    }
    participants = {one.principal: officers[one.principal] for one in both}
    text = transcript.make(
        operation, participants, plan.witnesses, times, software=f"signer {__version__}"
    )
    _say(f"The transcript has the SHA-256 {hashlib.sha256(text).hexdigest()}")
    flow.confirm("Do both officers sign the transcript?", yes=plan.yes)
    write_file(plan.out / transcript.FILE, text)
    for one in both:
        write_file(plan.out / transcript.signature_file(one.principal), one.sign(text))
    if csr := (operation.result or {}).get("certification_request"):
        write_file(plan.out / transcript.REQUEST, str(csr).encode())
    transcript.verify(plan.out, officers)


def _say_next(plan: _CeremonyPlan, operation: Operation) -> None:
    version = f"{plan.name}/versions/1"
    _say("", f"Done at {utc(datetime.now(UTC))}; the record is in {plan.out}:")
    _say(*(f"  {file.name}" for file in sorted(plan.out.iterdir())))
    _say("Give a copy to the auditors. Anyone can check it with:")
    _say(f"  signer ceremony --verify {plan.out} --officer A.pem --officer B.pem")
    _say(f"The key signs nothing yet: {version} is PRE_ACTIVE. Next:")
    if (operation.result or {}).get("certification_request"):
        _say(
            f"  1. have the authority certify {plan.out / 'request.csr'}",
            f"  2. signer operations propose import-certificate {version} CERT.pem --issuer CA.pem",
            f"  3. signer operations propose activate {version} --at TIME --sign-until TIME",
        )
    else:
        _say(f"  signer operations propose activate {version} --at TIME --sign-until TIME")
    _say("and before it signs, give verifiers the output of: signer keys export --form trust-list")
