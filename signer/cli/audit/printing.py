"""How ``signer audit`` prints records, matches and reports for people: 80 columns."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from signer.audit.read.in_hand import Compared
from signer.cli.output import print_table, print_text, say
from signer.text import count, plain

_WIDTH = 80
_LABEL = 14

_FINDINGS = {
    Compared.SAME: "This very message was signed here, with this signature.",
    Compared.MESSAGE: "This message was signed here. Its signature was not compared: the file"
    " holds none.",
    Compared.SIGNATURE: "This signature was made here. What it signs was not compared: give the"
    " message with --file, and the signature with --signature.",
    Compared.OTHER_MESSAGE: "WRONG: this signature was made here, but over another message.",
    Compared.OTHER_SIGNATURE: "WRONG: this message was to be signed here, but this signature is"
    " another one: it was not made for it.",
    Compared.NEITHER: "WRONG: neither this message nor this signature is that of the item.",
}


def finding(compared: str) -> str:
    """Returns what a comparison says, in a sentence."""
    return _FINDINGS[Compared(compared)]


# --- records -----------------------------------------------------------------------------------


def print_records(described: Sequence[Mapping[str, Any]]) -> None:
    """Prints records in a table of 80 columns; of long texts only the beginning."""
    rows = [
        (str(record["seq"]), record["time"][:16].replace("T", " "), record["kind"])
        for record in described
    ]
    names = ("record", "time (UTC)", "kind")
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    left = _WIDTH - sum(widths) - 3 * 4 - 1  # four columns, with what separates them
    print_table(
        (*names, "about"),
        ((*row, _lines(about(record), left)) for row, record in zip(rows, described, strict=True)),
    )


def print_record(described: Mapping[str, Any]) -> None:
    """Prints one record, and the text of an operation below it, as its officers read it."""
    fields = dict(described["fields"])
    content = str(fields.pop("content", ""))
    say(f"record {described['seq']}, kind {described['kind']}, of {described['time']}")
    for name, value in fields.items():
        _print_field(name, value)
    for index, item in enumerate(described.get("items", ())):
        _print_field(f"item {index}", item)
    if content:
        say("\n" + "\n".join(map(plain, content.split("\n"))).rstrip("\n"))


def about(described: Mapping[str, Any]) -> str:
    """Returns what a record says, in one line."""
    fields, items = described["fields"], len(described.get("items", ()))
    line = _ABOUT.get(described["kind"])
    try:
        return line(fields, items) if line else _all(fields)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return _all(fields)  # a record of another form than ours is shown as it is


def _print_field(name: str, value: object) -> None:
    match value:
        case None | "" | [] | {}:
            return
        case dict():
            print_text(f"{name}:")
            for key, member in value.items():
                print_text(f"  {key}: {_flat(member)}", indent=" " * 4)
        case list():
            print_text(f"{name}:")
            for member in value:
                print_text(f"  {_flat(member)}", indent=" " * 4)
        case _:
            print_text(f"{name:<{_LABEL}} {value}", indent=" " * (_LABEL + 1))


def _flat(value: object) -> str:
    match value:
        case dict():
            return ", ".join(f"{name} {_flat(member)}" for name, member in value.items())
        case list():
            return ", ".join(map(_flat, value))
    return "none" if value is None else str(value)


def _all(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_flat(value)}" for name, value in fields.items() if value)


def _short(name: str) -> str:
    """Returns a name of a key or version without the words that all of them have."""
    return name.removeprefix("facilities/").replace("/keys/", "/").replace("/versions/", " v")


def _keys(fields: Mapping[str, Any]) -> str:
    if "audit_key" in fields:
        return f"the audit key, {fields['algorithm']}"
    changed = [f"{_short(name)} {state}" for name, state in fields["changed"].items()]
    flags = [f"{flag[0]} {flag[1]} suspended".strip() for flag in fields.get("suspended", ())]
    flags += [f"{flag[0]} {flag[1]} resumed".strip() for flag in fields.get("lifted", ())]
    wrapping = [f"wrapping key {row[0]} on {row[1]}" for row in fields.get("wrapping", ())]
    wrapping += [f"wrapping key {row[0]} ended" for row in fields.get("wrapping_ended", ())]
    lines = [*changed, *flags, *wrapping]
    if fields.get("baseline"):
        lines = [f"{count(len(fields['versions']), 'version')} taken as given"]
    return ", ".join([*lines, *fields.get("unaccounted", ())]) or "nothing changed"


def _outcome(fields: Mapping[str, Any], items: int) -> str:
    failed = len(fields.get("failures", ()))
    text = f"{items - failed} signed" + (f", {failed} failed" if failed else "")
    return f"of {fields['intent']}: {text}"


_ABOUT: Mapping[str, Callable[[Mapping[str, Any], int], str]] = {
    "intent": lambda f, n: f"{n} {f['format']}, {_short(f['key_version'])}, for {f['principal']}",
    "outcome": _outcome,
    "indeterminate": lambda f, _: f"of {f['intent']}: nothing was released",
    "denials": lambda f, _: ", ".join(_flat(row) for row in f["denials"]),
    "policy": lambda f, _: (
        f"{f['policy'][:16]}... in force" + (f" by {f['operation']}" if f.get("operation") else "")
    ),
    "officers": lambda f, _: ", ".join(row[0] for row in f["officers"]),
    "keys": lambda f, _: _keys(f),
    "act": lambda f, _: f"{f['act']} {_short(f['target'])} by {f['officer']}: {f['reason']}",
    "proposal": lambda f, _: f"{f['operation']} by {f['officer']}",
    "approval": lambda f, _: f"{f['operation']} by {f['officer']}",
    "rejection": lambda f, _: f"{f['operation']} by {f['officer']}: {f['reason']}",
    "execution": lambda f, _: f"{f['operation']} begins",
    "executed": lambda f, _: f"{f['operation']} {f['state']} {f.get('note', '')}".rstrip(),
    "start": lambda f, _: f"version {f['version']}",
    "stop": lambda f, _: f"version {f['version']}",
    "snapshot": lambda _f, _n: "the sum of the records before",
}


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, max_lines=4, placeholder=" ...", break_on_hyphens=False)


# --- matches and proofs ------------------------------------------------------------------------

_FOUND = {
    "principal": "asked for by",
    "key_version": "signed with",
    "format": "format",
    "asked": "asked",
    "answered": "answered",
    "rule": "rule",
    "policy": "policy",
    "policy_sha256": "policy",
    "request_id": "request id",
    "digest": "digest",
    "signature": "signature",
    "failure": "failed",
}


def print_matches(matches: Iterable[dict[str, Any]]) -> None:
    """Prints each item that was found, with what comparing it says."""
    for number, match in enumerate(matches):
        if number:
            say()
        if match["compared"] is not None:
            print_text(finding(match["compared"]))
        _print_item(match)


def print_proof(values: Mapping[str, Any]) -> None:
    """Prints what a proof proves, and whether a message was compared with it."""
    print_text(
        f"The proof is valid: the log {values['log']} has this item, as its checkpoint of"
        f" {count(values['checkpoint'], 'record')} says."
    )
    if values["compared"] is None:
        print_text("No message was compared with it: give the one in hand with --file.")
    else:
        print_text(finding(values["compared"]))
    _print_item(values)


def _print_item(item: Mapping[str, Any]) -> None:
    outcome = item["outcome"]
    ended = "no outcome: nothing was released" if outcome is None else f"outcome {outcome}"
    print_text(f"Item {item['item']} of intent {item['intent']}, {ended}:")
    for name, label in _FOUND.items():
        if item.get(name):
            _print_field(label, item[name])
        if name == "principal" and item.get("on_behalf_of"):
            _print_field(
                "on behalf of", f"facility {item['on_behalf_of']}, as a client of its group"
            )


# --- reports -----------------------------------------------------------------------------------


def print_report(values: Mapping[str, Any]) -> None:
    """Prints what verifying a log found: problems on stderr, the rest in sentences."""
    for problem in values["problems"]:
        say(f"wrong: {plain(problem)}", err=True)
    verdict = "in order" if values["whole"] else "NOT in order"
    say(f"the log {values['origin']} is {verdict}")
    for line in _sentences(values):
        print_text(line)
    print_table(("kind of record", "records"), values["kinds"].items())


def _sentences(values: Mapping[str, Any]) -> list[str]:
    records, signed = values["records"], values["signed_records"]
    later = count(records - signed, "later one is", "later ones are")
    compared = count(values["checkpoints"], "checkpoint was", "checkpoints were")
    holds = f"It holds the records {values['first']} to {records - 1}"
    lines = [
        f"{holds}, with {count(values['items'], 'item')} to sign.",
        f"The last record is of {values['last_time']}; the root of all is {values['root']}.",
        f"{compared} compared. The first {signed} records are signed; {later} only chained yet.",
        _policies(values),
        _officers(values),
        *_joined(values["joined"]),
    ]
    if values["open_intents"]:
        open_ones = count(values["open_intents"], "intent has", "intents have")
        lines.append(f"{open_ones} no outcome yet.")
    for name, text in (
        ("recovered", "An interrupted write was cut off at"),
        ("overridden", "Records are missing, as was declared at"),
    ):
        if values[name]:
            lines.append(f"{text} record {', '.join(map(str, values[name]))}.")
    return lines


def _joined(joined: Mapping[str, Any] | None) -> list[str]:
    """Returns what the beginning of a further appliance's log was compared with."""
    if joined is None:
        return []
    begun = "A further appliance began this log."
    if "without_log" in joined:
        taken = f"{begun} The registry was compared with no other log, and taken as it was:"
        compare = "Compare its baseline with the log of an appliance that was there before."
        return [f"{taken} {joined['without_log']}. {compare}"]
    records = count(joined["records"], "record")
    known = f"{begun} Of the log {joined['log']} the first {records} accounted for the registry;"
    return [f"{known} their root is {joined['root']}."]


def _policies(values: Mapping[str, Any]) -> str:
    if values["decided_intents"] is None:
        return (
            "Of each intent only the hash of its policy was compared with the policy in force."
            " Whether the policy's text allows it was not decided: --decide does that."
        )
    decided = count(values["decided_intents"], "intent was", "intents were")
    return f"{decided} decided once more from the texts of their policies."


def _officers(values: Mapping[str, Any]) -> str:
    if values["officers"] is None:
        return "Officers: none are known; the log does not say who had to approve what."
    done = count(values["operations"], "operation was", "operations were")
    acts = count(values["acts"], "act")
    development = " Policies need no approval: it is a development log."
    return (
        f"The officers are {', '.join(values['officers'])}. {done} done, with {acts} of single"
        f" officers.{development if values['development'] else ''}"
    )
