"""docs/runbook.md has every alert, every refusal to start and every reason for NOT_SERVING.

Refusals and reasons are texts of the program. The runbook quotes them, one line each, with …
for what differs; these tests compare the quotes with the texts in the code.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from signer.daemon.accounts import UNACCOUNTED
from signer.daemon.status import STARTING, STOPPING
from signer.errors import ConfigError
from signer.hsm.spec import FailureKind

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/runbook.md"
RUNBOOK = re.sub(r"(?ms)^```.*?^```$", "", PAGE.read_text())
"""Without its blocks of commands and queries: they have lines that begin like headings."""
RULES = ROOT / "config/prometheus/rules"
DIFFERS = "…"

SPEAKING = (
    "api/server.py",
    "audit/write/log.py",
    "audit/write/recovery.py",
    "daemon/accounts.py",
    "daemon/running.py",
    "daemon/status.py",
    "daemon/policy_in_force.py",
    "daemon/serving.py",
    "hsm/worker/return_values.py",
    "hsm/latch.py",
    "hsm/worker/login.py",
    "hsm/front/dispatcher.py",
    "hsm/front/slot.py",
    "hsm/worker/token.py",
    "hsm/worker/__main__.py",
    "keys/database.py",
    "observe/http.py",
    "observe/__init__.py",
    "daemon/audit_log.py",
)
"""The modules that can refuse a start, or give a reason for NOT_SERVING."""
SAYING = {
    *("OperatorError", "AuditRefused", "RegistryError", "TokenFailure"),
    *("WorkerEnd", "_replace", "_leave", "halt", "stop_intents", "fail", "__init__"),
}
"""The functions that are called there with such a text."""
ELSEWHERE = {
    "… holds an audit log: it is started only once": "signer init",
    "… cannot be written: …": "signer init",
    "the audit log could not be started: …": "signer init",
    "…: …, then repeat": "an operation",
    "the registry was brought to schema … by a newer version of signer": "an operation",
}
"""Beginnings of texts in these modules that are not about the start."""


def sections(level: int) -> dict[str, str]:
    """The text under each heading of a level, up to the next heading of this or a higher one."""
    marks = "#" * level
    found = re.findall(rf"(?ms)^{marks} (.+?)\n(.*?)(?=^#{{1,{level}}} |\Z)", RUNBOOK)
    assert len(dict(found)) == len(found), "two headings are the same"
    return dict(found)


def under(heading: str) -> dict[str, str]:
    """The sections of one chapter."""
    text = sections(2)[heading]
    return {name: part for name, part in sections(3).items() if f"### {name}\n" in text}


def anchors() -> set[str]:
    """How headings are linked to, as GitHub writes it."""
    headings = re.findall(r"(?m)^#+ (.+)$", RUNBOOK)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = rules("alerts.yml")


# --- alerts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_leads_to_its_section(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert ROOT / page == PAGE
    assert anchor in anchors()
    text = under("Alerts")[rule["alert"]]
    assert text.lstrip().startswith(f"{rule['labels']['severity'].capitalize()}. ")
    assert re.search(r"\*\*(Do\b|do\b|Tell)", text), "it does not say what to do"


def test_every_section_is_of_an_alert() -> None:
    assert list(under("Alerts")) == [rule["alert"] for rule in ALERTS]


def test_links_lead_to_headings() -> None:
    assert set(re.findall(r"\]\(#([^)]*)\)", RUNBOOK)) <= anchors()
    shipped = "".join(path.read_text() for path in RULES.glob("*.yml"))
    assert set(re.findall(r"docs/runbook\.md#([\w-]+)", shipped)) <= anchors()


def test_every_cause_of_a_workers_end_is_explained() -> None:
    text = under("Alerts")["SignerWorkerRestarts"]
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", text))
    assert set(rows) == set(FailureKind)
    ending = {cause for cause, row in rows.items() if "Ends a start." in row}
    assert ending == {kind for kind in FailureKind if kind.ends_start}


def test_the_objective_counts_the_reasons_that_the_runbook_calls_ours() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)`( \(items\))? \| yes \|", sections(2)["The objective"])
    for rule in rules("recording.yml"):
        if rule["record"].startswith("job:signer_sli_bad:rate"):
            [counted] = re.findall(r'reason=~"([^"]*)"', rule["expr"])
            items = rule["labels"]["sli"] == "items"
            told = {reason for reason, of_items in rows if bool(of_items) == items}
            assert set(counted.split("|")) == told | ({"INTERNAL"} if items else set())


# --- refusals and reasons ---------------------------------------------------------------------


def text_of(node: ast.expr) -> str:
    """A text of the code, with … for each value in it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(text_of, values))
        case _:
            return DIFFERS


def texts() -> Iterator[str]:
    """Every text with which a start can end, and every reason of /readyz."""
    for name in SPEAKING:
        for node in ast.walk(ast.parse((ROOT / "signer" / name).read_text())):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if called in SAYING:
                    said = [*node.args, *(word.value for word in node.keywords)]
                    yield from filter(has_words, map(text_of, said))
    yield str(ConfigError(DIFFERS, []))
    yield from (STARTING, STOPPING, UNACCOUNTED)
    yield "starting"  # Pool.reason, while no worker has an end yet


def has_words(text: str) -> bool:
    return len(re.findall(r"\w+", text)) > 1


def says(quote: str, text: str) -> bool:
    """Whether a quote is this text, or its beginning where it ends with …"""
    pattern = ".*".join(map(re.escape, quote.split(DIFFERS)))
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def quotes() -> list[str]:
    chapters = {**under("The daemon does not start"), **under("NOT_SERVING")}
    for name, part in chapters.items():
        assert "\n> " in part, f"{name} quotes nothing"
    return re.findall(r"(?m)^> (.+)$", "".join(chapters.values()))


AT_START = sorted(
    {text for text in texts() if not any(says(f"{known}…", text) for known in ELSEWHERE)}
)


def test_the_texts_are_found() -> None:
    assert len(AT_START) > 35
    assert any(text.startswith("the audit log in … is not whole") for text in AT_START)
    assert any(text.startswith("… has rejected this PIN before") for text in AT_START)


@pytest.mark.parametrize("text", AT_START)
def test_what_the_program_says_is_explained(text: str) -> None:
    assert any(says(quote, text) for quote in quotes())


@pytest.mark.parametrize("quote", quotes())
def test_what_is_quoted_is_what_the_program_says(quote: str) -> None:
    assert any(says(quote, text) for text in AT_START)


def test_texts_that_are_not_about_the_start_exist() -> None:
    all_texts = list(texts())
    for known in ELSEWHERE:
        assert any(says(f"{known}…", text) for text in all_texts), known


def test_the_comparison_compares() -> None:
    assert says("the … of …", "the end of … days")
    assert says("a port …", "a port is taken: … ends it")
    assert not says("a port", "a port is taken")
    assert not says("port …", "a port is taken")
