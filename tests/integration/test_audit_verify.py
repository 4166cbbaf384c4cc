"""What an auditor learns from a real appliance's log when somebody goes past the officers."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import signer
from tests.integration import edge
from tests.integration.officers import Office
from tests.integration.test_registry_followed import execute, reason

NAME = "facilities/01-001/keys/records"
VERSION = f"{NAME}/versions/1"
WHERE = "key_id = (SELECT id FROM keys WHERE facility = '01-001' AND key = 'records')"
FOLLOWED_SECONDS = 5.0


@pytest.fixture
def made(appliance: Any, tmp_path: Path) -> Iterator[Any]:
    """An appliance of the test's own: what is done to it shows in its log for good."""
    with edge.own(appliance, tmp_path) as one:
        yield one


def signs(made: Any) -> str:
    """Asks until it signs, or for as long as a change of the registry may take."""
    end = time.monotonic() + FOLLOWED_SECONDS
    while (said := reason(made, NAME)) != "ok" and time.monotonic() < end:
        time.sleep(0.1)
    return said


def verified(made: Any, *words: str, folder: Path | None = None) -> dict[str, Any]:
    audit = folder or made.dir / "audit"
    done = signer("audit", "verify", "--json", "--dir", audit, *words)
    report: dict[str, Any] = json.loads(done.out)
    assert done.code == (not report["whole"]), done.err
    return report


def in_order(made: Any) -> None:
    edge.until(lambda: verified(made)["whole"], "the log is signed and in order")


def suspend_key(office: Office) -> None:
    with office.client("officer-a") as client:
        client.operations.suspend_key(NAME, "seen forged")


def suspend_everything(office: Office) -> None:
    with office.client("officer-a") as client:
        client.operations.suspend_everything("seen forged")


def compromise(office: Office) -> None:
    with office.client("officer-a") as client:
        client.operations.mark_compromised(NAME, "stolen")


ACTIVE = f"UPDATE key_versions SET state = 'ACTIVE' WHERE {WHERE}"


@pytest.mark.parametrize(
    ("stop", "statement"),
    [(suspend_key, ACTIVE), (compromise, ACTIVE), (suspend_everything, "DELETE FROM suspensions")],
)
def test_what_sql_undoes_is_served_seen_or_not_served(
    made: Any, stop: Callable[[Office], None], statement: str
) -> None:
    office = Office(made.dev)
    assert reason(made, NAME) == "ok"
    stop(office)
    assert reason(made, NAME) != "ok"
    in_order(made)
    execute(made, statement)
    served = signs(made) == "ok"
    problems = verified(made)["problems"]
    assert problems, f"nobody sees that it was undone; signing: {served}"
    assert any(text.startswith("record ") for text in problems)


def test_what_officers_undo_together_is_in_order(made: Any) -> None:
    office = Office(made.dev)
    for stop, target in ((suspend_key, NAME), (suspend_everything, "everything")):
        stop(office)
        assert reason(made, NAME) != "ok"
        office.do("resume", target=target)
        assert reason(made, NAME) == "ok"
    in_order(made)
    report = verified(made, "--decide")
    assert report["problems"] == []
    assert report["decided_intents"] == report["kinds"]["intent"] >= 2


def test_texts_of_policies_belong_to_the_log(made: Any, tmp_path: Path) -> None:
    assert reason(made, NAME) == "ok"
    in_order(made)
    copy = tmp_path / "copy"
    shutil.copytree(made.dir / "audit", copy)
    assert verified(made, folder=copy)["problems"] == []
    [text] = (copy / "policies").iterdir()
    text.write_bytes(text.read_bytes() + b"# changed")
    for words in ((), ("--decide",)):
        problems = verified(made, *words, folder=copy)["problems"]
        assert any("is not the policy that its name says" in problem for problem in problems)
    text.unlink()
    [missing] = verified(made, folder=copy)["problems"]
    assert f"policies/{text.name} is missing" in missing
