"""The lifetime of a key version, on a real appliance: charged, shown, kept, refused, decided."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.commands import signer
from tests.integration import edge
from tests.integration.officers import Office
from tests.integration.test_audit_verify import verified

KEY = "facilities/strict/keys/records"
FIRST, SECOND = f"{KEY}/versions/1", f"{KEY}/versions/2"
RULE = "facilities.strict.lifetime_signatures"


def bounded(policy: dict[str, Any]) -> None:
    policy["facilities"]["strict"]["lifetime_signatures"] = 10


@pytest.fixture(scope="module")
def made(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with edge.own(appliance, tmp_path_factory.mktemp("lifetime"), policy=bounded) as one:
        yield one


def sign(made: Any, items: int, *, bad: int = 0, request_id: str = "", key: str = KEY) -> Any:
    issuer = edge.connect(made.dev)
    try:
        payloads = [b"{}"] * (items - bad) + [b"bad"] * bad
        return issuer.sign(payloads, key=key, request_id=request_id)
    finally:
        issuer.channel.close()


def refused(made: Any, items: int, key: str = KEY) -> edge.Refusal:
    return edge.refused(lambda: sign(made, items, key=key), "KEY_VERSION_EXHAUSTED")


def shown(made: Any, version: str = FIRST) -> tuple[int, int]:
    """What GetKeyVersion shows of a version: how much was used, of how much."""
    with Office(made.dev).client("issuer") as client:
        found = client.get_key_version(version)
    return found.signatures_used, found.lifetime_signatures


def restart(made: Any) -> None:
    assert made.stop() == 0
    made.start()


def decided_again(made: Any) -> None:
    """The log is whole, and each intent is one that its policy allows."""
    edge.until(lambda: verified(made)["whole"], "the log is signed")
    report = verified(made, "--decide")
    assert report["problems"] == []
    assert report["decided_intents"] == report["kinds"]["intent"]


def command(made: Any, *words: str) -> str:
    done = signer(*words, "--client", made.dir / "client-operator.yaml")
    assert done.code == 0, done.err
    return done.out


def test_a_lifetime_survives_a_restart_and_is_decided_again(made: Any) -> None:
    assert shown(made) == (0, 10)
    asked = str(uuid.uuid4())
    first = sign(made, 4, bad=1, request_id=asked)
    assert set(first.failures) == {3}
    assert shown(made) == (4, 10)

    # A repetition costs nothing; nor does a call of which nothing can be signed.
    assert sign(made, 4, bad=1, request_id=asked).signatures == first.signatures
    assert set(sign(made, 2, bad=2).failures) == {0, 1}
    assert shown(made) == (4, 10)

    # All or nothing, also after a restart.
    for _ in range(2):
        refusal = refused(made, 7)
        assert refusal.metadata == {
            "rule": RULE,
            "key_version": FIRST,
            "limit": "10",
            "used": "4",
            "left": "6",
        }
        assert "have officers rotate the key" in refusal.message
        assert refusal.retry_after is None
        assert shown(made) == (4, 10)
        restart(made)
    assert len(sign(made, 6).signatures) == 6
    assert refused(made, 1).metadata["left"] == "0"
    decided_again(made)


def test_a_version_near_its_end_is_shown_wherever_somebody_looks(made: Any) -> None:
    assert shown(made) == (10, 10)
    says = f"{FIRST} has used 100 % of its lifetime, 10 of 10 signatures: rotate its key"
    assert says in " ".join(command(made, "top").split())
    value = json.loads(command(made, "keys", "show", FIRST, "--json"))
    assert (value["signatures_used"], value["lifetime_signatures"]) == (10, 10)
    assert "lifetime signatures  10" in command(made, "keys", "show", FIRST)
    [due] = json.loads(command(made, "keys", "plan", "--days", "0", "--json"))
    assert (due["version"], due["ends"], due["cause"]) == (FIRST, None, "lifetime_signatures")
    assert command(made, "keys", "plan", "--days", "0", "--names") == f"{KEY}\n"
    gauge = 'signer_key_lifetime_used_ratio{group="01"} 1.0\n'
    edge.until(lambda: gauge in made.get("/metrics")[1], "the gauge is read anew")
    _, page = made.get("/")
    assert "<td>lifetime of a key of group 01</td>" in page
    done = signer("doctor", "--config", made.dir / "signer.yaml", "--json")
    findings = json.loads(done.out)["findings"]
    [finding] = [each for each in findings if each["check"] == "key lifetimes"]
    assert finding["level"] == "warning"
    assert finding["seen"] == "a key of group 01 has used 100 % of its lifetime"


def test_a_rotated_key_begins_a_lifetime_and_the_old_version_gets_none(made: Any) -> None:
    Office(made.dev).do("rotate", f"{KEY}\n".encode(), activate_at=0, overlap_seconds=3600)
    assert shown(made, SECOND) == (0, 10)
    assert len(sign(made, 3).signatures) == 3
    assert (shown(made), shown(made, SECOND)) == ((10, 10), (3, 10))
    assert refused(made, 1, FIRST).metadata["key_version"] == FIRST
    restart(made)
    assert (shown(made), shown(made, SECOND)) == ((10, 10), (3, 10))


def test_another_bound_counts_from_the_beginning_of_the_log(made: Any) -> None:
    def bound(limit: int) -> None:
        def edit(policy: dict[str, Any]) -> None:
            policy["facilities"]["strict"]["lifetime_signatures"] = limit

        made.edit_policy(edit)
        command(made, "reload")

    bound(12)
    assert refused(made, 3, FIRST).metadata["left"] == "2"
    assert len(sign(made, 2, key=FIRST).signatures) == 2
    bound(2)
    assert refused(made, 1, FIRST).metadata["left"] == "0"
    assert shown(made) == (12, 2)
    decided_again(made)
