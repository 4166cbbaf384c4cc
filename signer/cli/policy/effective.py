"""``signer policy show`` and ``explain``: what a policy allows, and which rule says so."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import click

from signer.cli.operations.arguments import Text
from signer.cli.options import config_option, json_option
from signer.cli.output import output, print_json, print_table, print_text, say
from signer.config.models import load_config
from signer.config.policy_documents import load_policy, read_policy_text
from signer.daemon.draft import files_state, policy_in_registry
from signer.errors import OperatorError
from signer.formats import FORMATS
from signer.formats.payloads import ContentTerms, PayloadError
from signer.model import Format, KeyName
from signer.policy.decide import Decision, decide
from signer.policy.narrow import in_words, shown
from signer.policy.rules import Policy, Terms
from signer.policy.values import instant

_in_force_option = click.option(
    "--in-force", is_flag=True, help="Ask the policy in force, and not the files."
)


@click.command(short_help="Prints what may be done with the keys of facilities.")
@config_option
@_in_force_option
@click.option("--facility", metavar="ID", help="Only this one, with the rule behind each line.")
@json_option
def show(*, config_file: Path, in_force: bool, facility: str | None, as_json: bool) -> None:
    """Prints what may be done with the keys of every facility.

    Keys with rules of their own are listed; "*" stands for all others, which
    have no formats where the facility has HCERT, SHC or TIMESTAMP and others. It shows the files,
    which may be a draft, or the policy in force with --in-force; a line on stderr says which.

    \b
      signer policy show --config signer.yaml
      signer policy show --config signer.yaml --facility moh
      signer policy show --config signer.yaml --json \\
        | jq '.[] | select(.delegation)'
    """
    loaded = _load(config_file, in_force=in_force)
    if facility is not None and facility not in loaded.facilities:
        raise OperatorError(_unknown(facility))
    names = sorted(loaded.facilities) if facility is None else [facility]
    rows = []
    for facility_rules in map(loaded.facilities.__getitem__, names):
        rows += [("*", facility_rules.terms), *sorted(facility_rules.keys.items())]
    if as_json:
        print_json([_row_value(loaded, key, terms) for key, terms in rows])
    elif facility is None:
        _print_all(rows)
    else:
        _print_facility(loaded, rows)


def _unknown(facility: str) -> str:
    return f"the policy has no facility {facility}: `signer policy show` lists all facilities"


Decisions = list[tuple[Format, Decision]]


def _decision_values(decisions: Decisions) -> list[dict[str, object]]:
    return [
        {
            "format": str(message_format),
            "allowed": decision.allowed,
            "rule": decision.rule,
            "reason": decision.reason,
            "message": decision.message,
            "retry_after_seconds": decision.retry_after,
        }
        for message_format, decision in decisions
    ]


def _print_decisions(decisions: Decisions) -> None:
    rows = [
        (str(wanted), "allowed" if decision.allowed else "denied", decision.rule, decision.message)
        for wanted, decision in decisions
    ]
    print_table(("format", "decision", "rule", "why"), rows)


@click.command(short_help="Prints whether a principal may sign with a key, and why.")
@config_option
@_in_force_option
@click.option("--principal", metavar="URI", required=True, help="The URI of the certificate.")
@click.option(
    "--key", type=Text("NAME", KeyName.parse), required=True, help="facilities/ID/keys/ID"
)
@click.option(
    "--format",
    "format_name",
    metavar="FORMAT",
    type=click.Choice(list(Format), case_sensitive=False),
    help="One format; by default all.",
)
@click.option(
    "--at",
    type=Text("TIME", instant),
    default=lambda: datetime.now(UTC).timestamp(),
    help="As in 2030-01-01T08:00:00+07:00; by default now.",
)
@click.option(
    "--payload",
    "payload_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A payload that the content rules judge, too.",
)
@output(
    _decision_values,
    _print_decisions,
    ok=lambda decisions: any(decision.allowed for _, decision in decisions),
)
def explain(
    *,
    config_file: Path,
    in_force: bool,
    principal: str,
    key: KeyName,
    format_name: str | None,
    at: float,
    payload_file: Path | None,
) -> Decisions:
    """Prints whether a principal may sign with a key, and the rule behind it.

    The answer is that of the files, which may be a draft, or of the policy in force with
    --in-force; a line on stderr says which. Whether the key exists, its algorithm and the
    rest of the quotas are not checked. With --payload the answer is also that of the format
    and of the content rules about this payload, as a key for ES256 would sign it; the
    usages of the key's certificate and the length of a digest are not
    checked. The exit code is 0 if signing is allowed (without --format: in
    at least one format), else 1.

    \b
      signer policy explain --config signer.yaml \\
        --principal spiffe://signer.example/facility/01-001 \\
          --key facilities/01-001/keys/records
      ... --format JWS --at 2030-01-01T21:00:00+07:00
      ... --format HCERT --payload certificate.json
    """
    loaded = _load(config_file, in_force=in_force)
    if key.facility not in loaded.facilities:
        say(_unknown(key.facility), err=True)  # the decision is that of the server, which hides it
    formats = list(Format) if format_name is None else [Format(format_name)]
    payload = None if payload_file is None else payload_file.read_bytes()
    decisions = []
    for wanted in formats:
        decision = decide(loaded, principal, key, wanted, at)
        if payload is not None and decision.terms is not None:
            decision = _judge(decision, decision.terms, wanted, payload, at)
        decisions.append((wanted, decision))
    return decisions


def _judge(decision: Decision, terms: Terms, wanted: Format, payload: bytes, at: float) -> Decision:
    """Returns the decision about a payload that may be signed as far as its content goes."""
    try:
        FORMATS[wanted].inspect(
            payload, ContentTerms(terms.content, terms.hcert, terms.shc, int(at), terms.timestamp)
        )
    except PayloadError as error:
        failure = error.failure
        return Decision(None, failure.rule, failure.reason, failure.message)
    return decision


def _load(config_file: Path, *, in_force: bool) -> Policy:
    """Reads the policy that is asked, and says on stderr which one it is."""
    config = load_config(config_file)
    if in_force:
        loaded = read_policy_text(policy_in_registry(config)).policy
        say(f"the policy in force, {loaded.sha256}", err=True)
        return loaded
    loaded = load_policy(config.policy)
    say(f"{config.policy}: {files_state(config, loaded.sha256)}", err=True)
    return loaded


def _row_value(policy: Policy, key: str, terms: Terms) -> dict[str, object]:
    rules = shown(terms)
    return {
        "facility": terms.facility,
        "group": terms.group,
        "key": key,
        "clients": sorted(policy.clients_of(terms)),
        **rules,
        "rules": {name: terms.rule(name) for name in rules},
    }


def _cell(name: str, value: object) -> str:
    """Returns a value for people: an empty one is "none" for formats, else "-"."""
    return in_words(value, "none" if name == "formats" else "-")


def _print_all(rows: Iterable[tuple[str, Terms]]) -> None:
    """Prints a paragraph for each key: a table of all rules would be 300 columns wide."""
    none = True
    for key, terms in rows:
        none = False
        group = f", group {terms.group}" if terms.group else ""
        say(f"{terms.facility}, key {key}{group}")
        rules = [
            f"{name}: {_cell(name, value)}"
            for name, value in shown(terms).items()
            if name == "formats" or value not in (None, [], {})
        ]
        print_text(f"  {'; '.join(rules)}", "  ")
    if none:
        say("the policy has no facilities: no client may sign")


def _print_facility(policy: Policy, rows: Iterable[tuple[str, Terms]]) -> None:
    """Prints one facility, a line for each rule of each key."""
    lines = []
    for key, terms in rows:
        lines.append((key, "clients", ", ".join(sorted(policy.clients_of(terms))) or "-", ""))
        for name, value in shown(terms).items():
            free = name != "formats" and value in (None, [], {})
            lines.append((key, name, _cell(name, value), "" if free else terms.rule(name)))
    print_table(("key", "what", "value", "rule"), lines)
