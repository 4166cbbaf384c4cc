"""Somebody changes the registry by SQL, on a real appliance: alone, and with a second one.

No change serves anything that officers have not signed; each is shown. What only stops is
obeyed. After each one the rows are put back, and the appliances serve again.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from signer.client import SignerClient
from signer.client._errors import SignerClientError
from signer.client._operations import sign_operation
from signer.daemon.accounts import UNACCOUNTED
from signer.keys import schema
from signer.keys.registry import Registry
from signer.officers.approval import parse
from signer.tools.dev.key_plan import principal
from tests.commands import signer
from tests.daemon import Daemon, beside, until, verified
from tests.integration.officers import Office
from tests.integration.place import KEY, Place
from tests.torture import long

CLINIC, WARD = "facilities/clinic/keys", "facilities/ward/keys/records"
STOPPED = ("suspended", "resumed", "compromised", "deactivated", "planned")
ACTIVE = ("records", "one", "two", "three")
TABLES = [*schema.metadata.sorted_tables]


class Site:
    """One appliance, or two on one registry; whatever officers have decided before."""

    def __init__(self, place: Place, daemons: Sequence[Daemon], url: str) -> None:
        self.place, self.daemons = place, daemons
        self.office = Office(place.dev)
        self.registry = Registry.open(url)
        self.operations: dict[str, str] = {}  # what they did, and the operation's id

    def offices(self) -> list[Office]:
        return [Office({**self.place.dev, "address": d.settings["listen"]}) for d in self.daemons]

    def prepare(self) -> None:
        """Makes keys in every state, and decisions that were replaced by others."""
        office, done = self.office, self.operations
        for name in (*ACTIVE, *STOPPED):
            key = f"{CLINIC}/{name}"
            office.do("create-key", key=key, algorithm="ES256", activate=name != "planned")
        office.do("create-key", key=WARD, algorithm="ES256", activate=True)
        with office.client("officer-a") as client:
            client.operations.suspend_key(f"{CLINIC}/resumed", "seen forged")
        done["resume"] = office.do("resume", target=f"{CLINIC}/resumed").id
        with office.client("officer-a") as client:
            for name in ("suspended", "resumed"):
                client.operations.suspend_key(f"{CLINIC}/{name}", "seen forged")
            client.operations.mark_compromised(f"{CLINIC}/compromised", "seen forged")
            client.operations.suspend_facility("ward", "seen forged")
        office.do("deactivate", version=f"{CLINIC}/deactivated/versions/1")
        first = self.place.policy
        wider = yaml.safe_load(first)
        wider["facilities"]["clinic"]["clients"].append(principal("stranger"))
        self.place.put_policy(json.dumps(wider))
        done["policy"] = office.do("policy").id
        self.place.put_policy(first)
        office.do("policy")
        third = self.place.certificate("issuer-b").read_text()
        done["officers"] = office.do("officers", add=[third]).id
        office.do("officers", remove=[principal("issuer-b")])

    def served(self) -> list[str]:
        """Everything that signs, or decides, and must not."""
        found = []
        for office in self.offices():
            keys = [f"{CLINIC}/{name}" for name in (*STOPPED, "invented")]
            keys += [f"{key}/versions/{n}" for key in keys for n in (1, 2)]
            keys += [WARD, f"{KEY}/versions/2"]
            with office.client("issuer") as issuer:
                found += [key for key in keys if accepted(issuer, key)]
            found += [f"stranger: {key}" for key in (KEY,) if signs(office, "stranger", key)]
            for who in ("stranger", "issuer-b"):
                with office.client(who) as client:
                    try:
                        client.operations.officers()
                        found.append(f"officer: {who}")
                    except SignerClientError:
                        continue
        return found

    def told(self) -> bool:
        """Whether every appliance gives the reason."""
        return all(UNACCOUNTED in daemon.get("/readyz")[1] for daemon in self.daemons)

    def ready(self) -> bool:
        return all(daemon.get("/readyz")[0] == 200 for daemon in self.daemons)

    def ended(self, operation: str) -> str:
        return self.office.ended(operation).state

    @contextmanager
    def changed(self, change: "Change", *, counts: bool = True) -> Iterator[None]:
        """The registry with one change; afterwards its rows are as they were."""
        with self.registry.reading() as connection:
            rows = {table: connection.execute(sa.select(table)).all() for table in TABLES}
        with self.registry.writing(counts=counts) as write:
            change.make(self, write.connection, write.revision)
        try:
            yield
        finally:
            with self.registry.writing() as write:
                for table in reversed(TABLES):
                    write.connection.execute(sa.delete(table))
                for table in TABLES:
                    known = [dict(row._mapping) for row in rows[table]]
                    if table is schema.revision:
                        known[0]["value"] = write.revision
                    if table is schema.key_versions:
                        for row in known:
                            row["revision"] = write.revision
                    if known:
                        write.connection.execute(sa.insert(table), known)


class Change(NamedTuple):
    """What somebody does by hand; ``make`` gets the site, a connection and the revision."""

    name: str
    make: Callable[[Site, sa.Connection, int], object]


def signs(office: Office, who: str, key: str) -> bool:
    with office.client(who) as client:
        return accepted(client, key)


def accepted(client: SignerClient, key: str) -> bool:
    try:
        return client.sign_batch(key, "JWS", [b"{}"], timeout=10)[0].ok
    except SignerClientError:
        return False


def _refused(office: Office, key: str) -> bool:
    return not signs(office, "issuer", key)


def _alarms(daemon: Daemon) -> int:
    return daemon.log.read_text().count('"obeyed": ["')


def _alarmed(daemon: Daemon, known: int) -> bool:
    return _alarms(daemon) > known


def _version(name: str) -> sa.ColumnElement[bool]:
    keys = schema.keys
    return schema.key_versions.c.key_id.in_(
        sa.select(keys.c.id).where(keys.c.facility == "clinic", keys.c.key == name)
    )


def version(key: str, **values: Any) -> Change:
    """Other values in a version's row."""

    def make(_site: Site, connection: sa.Connection, revision: int) -> None:
        statement = sa.update(schema.key_versions).where(_version(key))
        assert connection.execute(statement.values(**values, revision=revision)).rowcount == 1

    return Change(f"{key}-{'-'.join(f'{n}={v!r:.20}' for n, v in values.items())}", make)


def another(key: str, number: int) -> Change:
    """A version that nobody created: a copy of the active one's row."""

    def make(_site: Site, connection: sa.Connection, revision: int) -> None:
        [row] = connection.execute(sa.select(schema.key_versions).where(_version("records")))
        keys = schema.keys
        where = sa.and_(keys.c.facility == "clinic", keys.c.key == key)
        known = connection.execute(sa.select(keys.c.id).where(where)).scalar_one_or_none()
        if known is None:
            added = sa.insert(keys).values(facility="clinic", key=key, algorithm="ES256")
            known = connection.execute(added.returning(keys.c.id)).scalar_one()
        made = dict(row._mapping)
        del made["id"]
        made |= {"key_id": known, "number": number, "cka_id": b"c" * 16, "thumbprint": "t" * 43}
        made |= {"revision": revision, "activate_at": row.activate_at + 1}
        connection.execute(sa.insert(schema.key_versions).values(made))

    return Change(f"another-{key}-{number}", make)


def placed(key: str, token: str, of: str = "") -> Change:
    """A placement that nobody approved: with the CKA_ID of another key, or an invented one."""

    def make(_site: Site, connection: sa.Connection, revision: int) -> None:
        versions = schema.key_versions
        first = sa.select(versions.c.id, versions.c.cka_id)
        [row] = connection.execute(first.where(_version(key)))
        cka_id = connection.execute(first.where(_version(of))).one().cka_id if of else b"p" * 16
        values = {"version_id": row.id, "token": token, "cka_id": cka_id, "state": "PLACED"}
        connection.execute(sa.insert(schema.placements).values(values | {"revision": revision}))

    return Change(f"placed-{key}-{token}-{of}", make)


def sql(name: str, *statements: str) -> Change:
    def make(_site: Site, connection: sa.Connection, _revision: int) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement)

    return Change(name, make)


def again(what: str, *changes: Change) -> Change:
    """An operation that was done comes once more: its row says that it has just ended."""

    def make(site: Site, connection: sa.Connection, revision: int) -> None:
        operations = schema.operations
        identity = site.operations[what]
        row = sa.update(operations).where(operations.c.id == identity)
        connection.execute(row.values(state="DONE", ended_revision=revision))
        content = connection.execute(
            sa.select(operations.c.content).where(operations.c.id == identity)
        ).scalar_one()
        put = {"policy": _put_policy, "officers": _put_officers}.get(what)
        if put is not None:
            put(connection, revision, parse(content).details)
        for change in changes:
            change.make(site, connection, revision)

    return Change(f"again-{what}", make)


def _put_policy(connection: sa.Connection, revision: int, details: Mapping[str, Any]) -> None:
    values = {"policy": details["policy_sha256"], "policy_since": revision}
    connection.execute(sa.update(schema.revision).values(values))


def _put_officers(connection: sa.Connection, revision: int, details: Mapping[str, Any]) -> None:
    connection.execute(sa.delete(schema.officers))
    for who, der64 in details["officers"].items():
        row = {"principal": who, "certificate": base64.b64decode(der64)}
        connection.execute(sa.insert(schema.officers).values(row))
    connection.execute(sa.update(schema.revision).values(officers_since=revision))


def officer(who: str, certificate: str) -> Change:
    """Somebody else's certificate among the officers."""

    def make(site: Site, connection: sa.Connection, _revision: int) -> None:
        pem = site.place.certificate(certificate).read_bytes()
        der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
        officers = schema.officers
        connection.execute(sa.delete(officers).where(officers.c.principal == principal(who)))
        connection.execute(sa.insert(officers).values(principal=principal(who), certificate=der))

    return Change(f"officer-{who}-{certificate}", make)


def done_by_hand(site: Site, connection: sa.Connection, revision: int) -> None:
    """A row says that an operation is DONE; one officer has signed it, as another one, too."""
    content = site.office.prepare("activate", version=f"{CLINIC}/planned/versions/1")
    store_operation(
        site.office, connection, content, ("officer-a", "officer-a"), state="DONE", ended=revision
    )
    version("planned", state="ACTIVE", activate_at=1.0).make(site, connection, revision)


def store_operation(
    office: Office,
    connection: sa.Connection,
    content: bytes,
    signers: Sequence[str],
    *,
    state: str,
    ended: int | None = None,
) -> str:
    proposal = parse(content)
    connection.execute(
        sa.insert(schema.operations).values(
            id=proposal.id,
            kind=proposal.kind,
            content=content,
            proposed_at=proposal.proposed_at,
            expires_at=proposal.expires_at,
            state=state,
            appliance=proposal.origin,
            done=0,
            total=0,
            note="",
            changed_at=proposal.proposed_at,
            ended_revision=ended,
            recorded=state == "DONE",
        )
    )
    for who, name in zip(("officer-a", "officer-b"), signers, strict=True):
        connection.execute(
            sa.insert(schema.signatures).values(
                operation=proposal.id,
                officer=principal(who),
                signature=sign_operation(content, office.keys[name]),
                at=proposal.proposed_at + 1,
            )
        )
    return proposal.id


OTHER_POLICY = (
    "UPDATE revision SET policy = (SELECT min(sha256) FROM documents WHERE sha256 != policy)"
)
FLAGS = "UPDATE suspensions SET"
WRAPPING_KEY = sql(
    "wrapping-key",
    "INSERT INTO wrapping_keys (id, token, created, destroyed, revision)"
    " VALUES ('invented', 'elsewhere', 9.0, false, 0)",
)
CHANGES = (
    version("suspended", state="ACTIVE"),
    version("compromised", state="ACTIVE"),
    version("deactivated", state="ACTIVE", deactivate_at=None),
    version("planned", state="ACTIVE", activate_at=1.0),
    version("compromised", state="SUSPENDED"),
    version("deactivated", state="PRE_ACTIVE", deactivate_at=None, activate_at=None),
    again("resume", version("resumed", state="ACTIVE")),
    Change("done-by-hand", done_by_hand),
    another("records", 2),
    another("invented", 1),
    version("records", cka_id=b"x" * 16),
    version("records", token="elsewhere"),
    version("records", spki=b"0"),
    version("records", certificate=b"0", kid=b"0" * 8),
    placed("records", "elsewhere"),
    placed("records", "elsewhere", of="compromised"),
    placed("compromised", "elsewhere", of="records"),
    sql("no-suspensions", "DELETE FROM suspensions"),
    sql("earlier-suspension", f"{FLAGS} since = 1.0"),
    sql("other-policy", OTHER_POLICY),
    again("policy"),
    again("officers"),
    officer("stranger", "stranger"),
    officer("officer-b", "stranger"),
    sql("no-officers", "DELETE FROM officers"),
    WRAPPING_KEY,
)
STOPS = (
    version("one", state="SUSPENDED"),
    version("two", state="COMPROMISED"),
    version("three", sign_until=1.0),
    sql(
        "another-suspension",
        "INSERT INTO suspensions (scope, name, since, officer, reason)"
        " VALUES ('facility', 'clinic', 2.0, 'nobody', 'by hand')",
    ),
)


UNSEEN = (
    version("suspended", state="ACTIVE"),
    sql("no-suspensions", "DELETE FROM suspensions"),
    sql("other-policy", OTHER_POLICY),
    officer("stranger", "stranger"),
    placed("records", "elsewhere"),
    WRAPPING_KEY,
)


@pytest.fixture(scope="module", params=["two", *long("one")])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    place = Place(tmp_path_factory.mktemp(request.param))
    policy = yaml.safe_load(place.policy)
    policy["facilities"]["ward"] = policy["facilities"]["clinic"]
    place.put_policy(json.dumps(policy))
    url = f"sqlite:///{place.dir / 'registry.sqlite'}"
    if request.param == "two":
        url = request.getfixturevalue("postgres").database()
        settings = yaml.safe_load(place.config.read_text())
        place.config.write_text(yaml.safe_dump(settings | {"registry": url}))
    done = place.init("officer-a", "officer-b")
    assert done.code == 0, done.err
    daemons = [Daemon(place.config)]
    if request.param == "two":
        daemons.append(Daemon(beside(place)))
        joined = daemons[1].run("init", "--join", "--without-log", "the first has not run yet")
        assert joined.code == 0, joined.errors
    for daemon in daemons:
        daemon.start()
    made = Site(place, daemons, url)
    made.prepare()
    yield made
    made.registry.close()
    assert [daemon.stop() for daemon in daemons] == [0] * len(daemons)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_change_by_hand_serves_nothing_and_is_shown(site: Site, change: Change) -> None:
    until(site.ready, "all serve")
    assert site.served() == []
    with site.changed(change):
        until(site.told, "every appliance gives a reason")
        assert site.served() == []
    until(site.ready, "the rows are as they were")
    assert all(signs(office, "issuer", KEY) for office in site.offices())


@pytest.mark.parametrize("change", UNSEEN, ids=lambda change: change.name)
def test_a_change_that_raises_no_revision_is_found_by_comparison(
    site: Site, change: Change
) -> None:
    until(site.ready, "all serve")
    with site.changed(change, counts=False):
        until(site.told, "every appliance gives a reason")
        assert site.served() == []
    until(site.ready, "the rows are as they were")


def test_changes_made_while_all_are_stopped_are_shown_at_the_next_start(site: Site) -> None:
    until(site.ready, "all serve")
    assert [daemon.stop() for daemon in site.daemons] == [0] * len(site.daemons)

    def make(place: Site, connection: sa.Connection, revision: int) -> None:
        for change in UNSEEN:
            change.make(place, connection, revision)

    with site.changed(Change("all", make), counts=False):
        for daemon in site.daemons:
            daemon.start(ready=False)
        assert site.told()
        assert site.served() == []
    until(site.ready, "the rows are as they were")


def test_an_operation_of_another_deployment_is_not_executed(site: Site) -> None:
    """Officers have approved it, for a registry that is not this one."""
    key = f"{CLINIC}/invented"
    ours = site.office.prepare("create-key", key=key, algorithm="ES256", activate=True)
    theirs = replace(parse(ours), deployment="0" * 32).canonical()
    with site.registry.writing() as write:
        signers = ("officer-a", "officer-b")
        identity = store_operation(site.office, write.connection, theirs, signers, state="APPROVED")
    told = site.office.ended(identity)
    assert (told.state, "is for another deployment" in told.note) == ("FAILED", True)
    assert site.served() == []


def test_every_log_names_what_was_not_served(site: Site) -> None:
    planned = version("planned", state="ACTIVE", activate_at=1.0)
    elsewhere = placed("records", "elsewhere", of="compromised")
    for change in (officer("stranger", "stranger"), planned, elsewhere):
        until(site.ready, "all serve")
        with site.changed(change):
            until(site.told, "every appliance gives a reason")
    for daemon in site.daemons:
        exported = signer("audit", "export", "--config", daemon.config).out
        for what in ("planned/versions/1", "the officers", "placement on token elsewhere"):
            assert re.search(f'"unaccounted": [^]]*{what}', exported), what
        audit = daemon.settings["audit"]
        directory = daemon.folder / audit.get("directory", "audit")
        report = verified(directory, audit.get("origin", "signer/audit"), whole=False)
        assert any("placement on token elsewhere" in text for text in report["problems"])


@pytest.mark.parametrize("change", STOPS, ids=lambda change: change.name)
def test_a_stop_by_hand_is_obeyed_and_alarmed(site: Site, change: Change) -> None:
    key = f"{CLINIC}/{change.name.partition('-')[0]}"
    key = KEY if key not in [f"{CLINIC}/{name}" for name in ACTIVE] else key
    alarms = [_alarms(daemon) for daemon in site.daemons]
    assert all(signs(office, "issuer", key) for office in site.offices())
    with site.changed(change):
        for office in site.offices():
            until(partial(_refused, office, key), "it is stopped")
        for daemon, known in zip(site.daemons, alarms, strict=True):
            until(partial(_alarmed, daemon, known), "an alarm is raised")
    # That the rows are as before does not end it: officers do.
    until(site.told, "every appliance gives a reason")
    assert not any(signs(office, "issuer", key) for office in site.offices())
