"""Two appliances on one PostgreSQL registry and one token: what one decides, both do."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from signer.client import NotFoundError, PreconditionError, UnavailableError
from signer.tools.dev import pki
from tests.commands import signer
from tests.daemon import Daemon, beside
from tests.integration import edge, officers

RECORDS = edge.RECORDS
OTHER = "facilities/01-002/keys/records"


class Site:
    """Both appliances, and the officers as each of them sees them."""

    def __init__(self, first: Daemon, second: Daemon, dev: dict[str, Any], database: Any) -> None:
        self.first, self.second, self.database = first, second, database
        self.at_first = officers.Office(dev)
        self.at_second = officers.Office({**dev, "address": second.settings["listen"]})

    def signs(self, office: officers.Office, key: str = RECORDS) -> bool:
        with office.client("issuer") as client:
            try:
                return client.sign_batch(key, "JWS", [b"{}"])[0].ok
            except PreconditionError:
                return False


@pytest.fixture(scope="module")
def site(appliance: Any, postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("two")
    made = type(appliance)(folder / "dev")
    made.init()
    url = postgres.database()
    shutil.rmtree(made.dir / "audit")
    made.configure({"registry": url, "audit": {"directory": "audit", "origin": "first/audit"}})
    made.init()  # the token's keys are found and registered once more
    second = beside(made)
    made.start()  # in development the files' policy comes into force with a start
    assert made.stop() == 0
    log = made.dir / "audit"
    assert signer("init", "--config", second, "--join", "--log", log).code == 0
    both = Daemon(made.dir / "signer.yaml"), Daemon(second)
    for each in both:
        each.start()
    yield Site(*both, made.dev, postgres)
    assert [each.stop() for each in both] == [0, 0]


def seen(what: str, happened: Callable[[], bool]) -> None:
    """Waits until the other appliance has seen it (goal: 2 s), and prints the time."""
    began = time.monotonic()
    edge.until(happened, what)
    took = time.monotonic() - began
    print(f"{what}: {took:.3f} s")


def test_a_suspension_on_one_stops_the_other(site: Site) -> None:
    assert site.signs(site.at_first, OTHER)
    assert site.signs(site.at_second, OTHER)
    with site.at_first.client("officer-a") as client:
        client.operations.suspend_facility("01-002", "seen forged")
    assert not site.signs(site.at_first, OTHER)
    seen("the suspension at the other", lambda: not site.signs(site.at_second, OTHER))
    assert site.signs(site.at_second)
    site.at_second.do("resume", target="facilities/01-002")
    assert site.signs(site.at_second, OTHER)
    seen("the resumption at the other", lambda: site.signs(site.at_first, OTHER))


def test_a_proposal_of_one_is_approved_at_the_other_and_executed_there(site: Site) -> None:
    name = "facilities/01-001/keys/shared"
    proposed = site.at_first.propose("create-key", key=name, algorithm="ES256", activate=True)
    site.at_second.approve(proposed.id)
    assert site.at_second.ended(proposed.id).state == "DONE"
    assert site.signs(site.at_second, name)

    def served() -> bool:
        with site.at_first.client("issuer") as client:
            try:
                return client.sign_batch(name, "JWS", [b"{}"])[0].ok
            except NotFoundError:
                return False

    seen("the new key at the other", served)


def test_both_follow_the_policy_and_their_files_do(site: Site) -> None:
    policy = site.first.config.parent / "policy" / "policy.yaml"
    policy.write_text(policy.read_text().replace("Ha Noi", "Hanoi"))
    site.at_first.do("policy")
    copy = site.second.config.parent / "policy-2" / "policy.yaml"
    seen("the policy at the other", lambda: "Hanoi" in copy.read_text())


def test_new_officers_are_officers_everywhere(site: Site, tmp_path: Path) -> None:
    authority = pki.authority(site.first.config.parent / "pki", "client-ca", "as it is")
    issued = edge.issue(tmp_path, authority, "officer-c", "spiffe://dev.signer.example/officer-c")
    site.at_first.do("officers", add=[issued.certificate.read_text()])
    dev = site.at_second.dev
    with_c = officers.Office(
        {
            **dev,
            "clients": {
                **dev["clients"],
                "officer-c": {"cert": str(issued.certificate), "key": str(issued.key)},
            },
        }
    )

    def known() -> bool:
        with site.at_second.client("officer-a") as client:
            return len(client.operations.officers().officers) == 3

    seen("the new officer at the other", known)
    proposed = site.at_second.propose("new-version", key=RECORDS)
    with_c.approve(proposed.id, by="officer-c")
    assert site.at_second.ended(proposed.id).state == "DONE"
    for each in (site.first, site.second):
        report = each.verified("--operations-elsewhere")
        assert report["problems"] == []
        assert len(report["officers"]) == 3


def test_signing_goes_on_while_the_database_is_gone(site: Site) -> None:
    proposed = site.at_first.propose("new-version", key=OTHER)
    with site.database.away():
        assert site.signs(site.at_first)
        assert site.signs(site.at_second)
        with site.at_first.client("officer-a") as client, pytest.raises(UnavailableError) as told:
            client.operations.suspend_key(OTHER, "while it is gone")
        assert told.value.reason == "REGISTRY_UNAVAILABLE"
        with site.at_second.client("officer-b") as client, pytest.raises(UnavailableError):
            client.operations.get(proposed.id)
    edge.until(lambda: _there(site, proposed.id), "the operation is there again")
    site.at_second.approve(proposed.id)
    assert site.at_second.ended(proposed.id).state == "DONE"
    for each in (site.first, site.second):
        assert each.verified("--operations-elsewhere")["problems"] == []


def _there(site: Site, identity: str) -> bool:
    with site.at_second.client("officer-b") as client:
        try:
            return client.operations.get(identity).id == identity
        except UnavailableError:
            return False
