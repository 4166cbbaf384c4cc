"""Many facilities from a CSV: every mistake in it, what it makes, and its interruptions."""

import hashlib
from itertools import count
from typing import Any

import pytest

from signer.errors import CallError
from signer.key_index import KeyIndex
from signer.keys.registry import RegistryState
from signer.model import KeyState
from signer.officers.kinds.create_key import BATCH
from signer.officers.kinds.enrolment_table import MAX_ROWS, read_table
from signer.officers.kinds.policy_change import WRITTEN
from signer.officers.store import OperationState
from tests.unit.officers.opstage import CLINIC, Stage
from tests.unit.officers.people import C
from tests.unit.officers.softtoken import Crash

HEAD = "facility,group,profile,clients,key,algorithm,bits"
CLIENT = "spiffe://signer.example/facility/n-1"


def row(**changed: str) -> str:
    """A good line but for what a test changes."""
    cells = {
        "facility": "n-1",
        "group": "01",
        "profile": "clinic",
        "clients": CLIENT,
        "key": "records",
        "algorithm": "ES256",
        "bits": "",
    }
    return ",".join((cells | changed).values())


def table(*rows: str, head: str = HEAD) -> bytes:
    return "\n".join((head, *rows, "")).encode()


def facilities(count: int) -> bytes:
    rows = [
        row(facility=f"n-{n}", clients=f"spiffe://signer.example/facility/n-{n}")
        for n in range(count)
    ]
    return table(*rows)


def test_facilities_are_enrolled(stage: Stage) -> None:
    content = table(row(), row(key="second", algorithm="EdDSA"), row(facility="n-2", group=""))
    shown = stage.prepare("enrol", content).difference
    assert shown[:2] == [
        f"+ 2 facilities in the policy, in the new file {name_of(content)}",
        "+ 3 keys on token soft, ACTIVE at once",
    ]
    assert f"+ 2 keys with profile clinic, group 01, for {CLIENT}" in shown
    assert "+ facilities/n-1/keys/records, ES256" in shown
    assert f"+ facility n-1, profile clinic, group 01, for {CLIENT}" in shown
    assert f"+ facility n-2, profile clinic, for {CLIENT}, rules as facility n-1" in shown
    assert "+ facility n-1: quotas 200 per second" in shown
    operation = stage.done("enrol", content)
    assert operation.result == {
        "policy_sha256": stage.snapshot.policy.sha256,
        "keys": 3,
        "file": name_of(content),
        "policy_files": WRITTEN,
    }
    assert (operation.done, operation.total) == (3, 3)
    assert stage.states("facilities/n-1/keys/second") == ["ACTIVE"]
    assert stage.snapshot.policy.facilities["n-1"].clients == {CLIENT}
    assert stage.snapshot.policy.facilities["n-2"].terms.group is None
    assert stage.snapshot.policy.groups["01"].facilities == frozenset()
    file = (stage.policy / name_of(content)).read_text()
    assert file.startswith("# Facilities that were enrolled")


def name_of(content: bytes) -> str:
    return f"enrolled-{hashlib.sha256(content).hexdigest()[:16]}.yaml"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the first line must be facility,group"),
        (table(row(), head="facility;group"), "missing: profile, clients, key, algorithm, bits"),
        (table(row(), head=f"{HEAD},quota"), "not known: quota"),
        (table(row(), head=f"{HEAD},key"), "the first line must be"),
        (table(row() + ",10 per week", head=f"{HEAD},quotas"), 'line 2: quota "10 per week": unit'),
        (table(row() + ",5", head=f"{HEAD},quotas"), 'line 2: quota "5": write a number'),
        (table(row() + ",6 per day;5 per day", head=f"{HEAD},quotas"), "line 2: has two quotas"),
        (table(row() + ",mon 9-17 VN", head=f"{HEAD},hours"), "line 2: hours mon 9-17 VN: should"),
        (table(row() + ",mon 09:00-08:00 UTC", head=f"{HEAD},hours"), "must be before the second"),
        (table(row() + ",monday 08:00-09:00 UTC", head=f"{HEAD},hours"), "should name days"),
        (table(row() + ",900 per second", head=f"{HEAD},quotas"), "line 2: quotas: 900 per second"),
        (table(row(clients=C)), f"line 2: {C} is an officer, who must not be a client"),
        (table(row(), head=HEAD.upper()), "the first line must be"),
        (table(), "has 0 rows"),
        (table(row() + ",x"), "line 2: has 8 cells, expected 7"),
        (table("n-1"), "line 2: has 1 cell"),
        (table(row(facility="N-1")), "line 2: facility must have 1 to 63"),
        (table(row(facility="")), "line 2: facility must have 1 to 63"),
        (table(row(facility="_audit")), "line 2: facility must have 1 to 63"),
        (table(row(facility="../../x")), "line 2: facility must have 1 to 63"),
        (table(row(facility="=1+1")), "line 2: facility must have 1 to 63"),
        (table(row(key="a" * 64)), "line 2: key must have 1 to 63"),
        (table(row(group="99")), "line 2: group 99 is not in the policy"),
        (table(row(group="=cmd()")), "line 2: group =cmd() is not in the policy"),
        (table(row(profile="hospital")), "line 2: profile: hospital is not in profiles"),
        (table(row(profile="🏥")), "line 2: profile: 🏥 is not in profiles"),
        (table(row(profile='"a: [b"')), "line 2: profile: a: [b is not in profiles"),
        (table(row(profile="border")), "n-1/keys/records signs HCERT"),
        (table(row(clients="")), "line 2: clients is empty"),
        (table(row(clients="=HYPERLINK(1)")), "is not a principal"),
        (table(row(clients="spiffe://signer.example/*")), "is not a principal"),
        (table(row(clients="spiffe://signer.example/é")), "is not a principal"),
        (table(row(clients=f"{CLIENT} {CLIENT}")), " twice"),
        (table(row(algorithm="es256")), "line 2: algorithm must be one of"),
        (table(row(algorithm="ES384")), "line 2: ES384 is not allowed with profile clinic"),
        (table(row(bits="256")), "line 2: ES256 has a fixed key length"),
        (table(row(algorithm="PS256")), "line 2: PS256 needs bits: name"),
        (table(row(algorithm="PS256", bits="99")), "line 2: PS256 needs bits: name"),
        (table(row(bits="1e3")), "line 2: bits is not a number"),
        (table(row(bits="²")), "line 2: bits is not a number"),
        (table(row(bits="123456")), "line 2: bits is not a number"),
        (table(row(), row()), "line 2: facilities/n-1/keys/records is in the file twice"),
        (table(row(), row(key="b", group="02")), "line 3: facility n-1 has another group"),
        (table(row(), row(key="b", profile="x")), "line 3: facility n-1 has another group"),
        (
            table(row(), row(key="b", clients="spiffe://a.example/b")),
            "line 3: facility n-1 has another group",
        ),
        (table(row(facility="01-001")), "line 2: facility 01-001 is in the policy already"),
        (table(row(profile="mixed")), "line 2: facilities/n-1/keys/records would sign nothing"),
        (table(row(), '"n-2,01'), "is not a CSV in UTF-8"),
        (table(row(), 'n-2,"0"1'), "is not a CSV in UTF-8"),
        (table(row()).decode().encode("utf-16"), "is in UTF-16: save it as CSV in UTF-8"),
        (table(row()).decode().encode("utf-16-le"), "is in UTF-16: save it as CSV in UTF-8"),
        (b"\xff" + table(row()), "is not a CSV in UTF-8"),
        (table(row(clients="x" * 200_000)), "is not a CSV in UTF-8"),
        (table(row(clients="a\0b")), ""),
        (table(*([row()] * (MAX_ROWS + 1))), f"has {MAX_ROWS + 1} rows, expected"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value[:50],
)
def test_a_csv_is_refused(untouched: Stage, content: bytes, told: str) -> None:
    problems = untouched.problems("enrol", content)
    assert problems
    assert told in "\n".join(problems)


def test_a_line_with_a_mistake_is_told_all_others_of_it(stage: Stage) -> None:
    """Or they would come one by one, each time that the file is corrected."""
    wrong = {"group": "99", "profile": "hospital", "clients": C, "algorithm": "ES257", "key": "K"}
    told = stage.problems("enrol", table(row(), row(facility="01-001", **wrong)))
    assert told == [
        "line 3: algorithm must be one of ES256, ES384, RS256, PS256, EdDSA",
        "line 3: facility 01-001 is in the policy already",
        "line 3: group 99 is not in the policy",
        "line 3: key must have 1 to 63 characters of a-z, 0-9, '.', '_' and '-'",
        "line 3: profile: hospital is not in profiles",
        f"line 3: {C} is an officer, who must not be a client",
    ]
    told = stage.problems("enrol", table(row(key="K", bits="9")))
    assert [text for text in told if "ES256 has a fixed key length" in text] == told[:1]


def test_every_line_that_is_wrong_is_told_up_to_a_bound(stage: Stage) -> None:
    wrong = [row(facility=f"N-{n}") for n in range(3)]
    assert [p[:7] for p in stage.problems("enrol", table(*wrong))] == [
        "line 2:",
        "line 3:",
        "line 4:",
    ]
    many = stage.problems("enrol", table(*(row(facility=f"N-{n}") for n in range(5000))))
    assert len(many) == 201
    assert many[-1] == "... and 4800 more problems"


@pytest.mark.parametrize(
    "content",
    [
        table(row(clients=f'"{CLIENT}"', facility='"n-1"')),
        b"\xef\xbb\xbf" + table(row()),
        table(row()).replace(b"\n", b"\r\n"),
        table(row()).replace(b"\n", b"\n\n"),
        table(row(facility=" n-1 ")),
        table(row(facility="null")),
        table(row(facility="1e3")),
        table(row()).replace(b",", b";"),
        table(row()).replace(b",", b"\t"),
        b"\xef\xbb\xbf" + table(row()).replace(b",", b";").replace(b"\n", b"\r\n"),
        table(row()) + b",,,,,,\n",
    ],
)
def test_what_spreadsheets_write_is_read(stage: Stage, content: bytes) -> None:
    assert stage.done("enrol", content).result


def test_all_mistakes_of_a_file_are_reported_at_once(stage: Stage) -> None:
    """Those of the cells, those between lines, and those that only the policy shows."""
    content = table(
        row(facility="N-1", algorithm="es256", bits="x", clients="") + ",5 per week,never",
        row(facility="n-2", group="99", profile="hospital") + ",,",
        row(facility="01-001") + ",,",
        row(facility="n-3", algorithm="ES384") + ",900 per second,",
        row(facility="n-4") + ",,",
        row(facility="n-4") + ",7 per day,",
        "too;short",
        head=f"{HEAD},quotas,hours",
    )
    lines = [problem.partition(": ") for problem in stage.problems("enrol", content)]
    by_line = {head: [text for h, _, text in lines if h == head] for head, _, _ in lines}
    assert list(by_line) == [f"line {number}" for number in range(2, 9)]
    words = ("facility must", "algorithm must", "bits is", "clients is", "quota ", "hours never")
    assert all(any(text.startswith(word) for text in by_line["line 2"]) for word in words)
    assert by_line["line 3"] == [
        "group 99 is not in the policy",
        "profile: hospital is not in profiles",
    ]
    assert by_line["line 4"][0].endswith("is in the policy already")
    assert by_line["line 5"][0].startswith("quotas: 900 per second is more than")
    assert "facilities/n-4/keys/records is in the file twice" in by_line["line 6"]
    assert any("another group" in text for text in by_line["line 7"])
    assert by_line["line 8"] == ["has 1 cell, expected 9"]


def test_a_csv_narrows_quotas_and_hours(stage: Stage) -> None:
    quotas = '"100 per minute, 5000 per day"'
    hours = "mon-fri 07:00-17:30; sat 07:00-12:00 Asia/Ho_Chi_Minh"
    content = table(
        f"{row()},{quotas},{hours}",
        f"{row(facility='n-2', clients='spiffe://signer.example/facility/n-2')},,",
        head=f"{HEAD},quotas,hours",
    )
    shown = "\n".join(stage.prepare("enrol", content).difference)
    assert "+ facility n-1: quotas 200 per second, 100 per minute, 5000 per day" in shown
    assert f"+ facility n-1: hours {hours}" in shown
    assert "+ facility n-2: quotas 200 per second\n" in shown
    stage.done("enrol", content)
    terms = stage.snapshot.policy.facilities["n-1"].terms
    assert list(map(str, terms.quotas)) == ["200 per second", "100 per minute", "5000 per day"]
    assert str(terms.hours) == hours
    assert stage.snapshot.policy.facilities["n-2"].terms.hours is None


def test_sets_of_clients_that_are_not_shown_are_counted(stage: Stage) -> None:
    names = (f"n-{number}" for number in range(25))
    rows = (row(facility=name, clients=f"spiffe://signer.example/{name}") for name in names)
    shown = stage.prepare("enrol", table(*rows)).difference
    assert "... and 5 more client lists; `show ID --attachment FILE` has them all" in shown


def test_an_enrolment_is_refused_where_its_file_could_not_be_written(stage: Stage) -> None:
    content = facilities(2)
    policy = stage.policy / "policy.yaml"
    text = policy.read_text()
    policy.write_text(text + "# a remark\n")
    [problem] = stage.problems("enrol", content)
    assert "holds a draft" in problem
    assert "`signer policy export --in-force DIR`" in problem
    policy.write_text(text)
    operation = stage.propose("enrol", content)
    policy.write_text(text + "# a remark\n")
    stage.approve(operation.id)
    assert stage.operation(operation.id).state is OperationState.FAILED
    assert not stage.token.keys
    policy.write_text(text)
    stage.proposals.retry(C, operation.id)
    done = stage.operation(operation.id)
    assert done.result is not None
    assert (done.result["file"], done.result["policy_files"]) == (name_of(content), WRITTEN)
    assert (stage.policy / name_of(content)).is_file()


def test_an_empty_attachment_is_told(stage: Stage) -> None:
    assert stage.problems("enrol")


@pytest.mark.parametrize(
    "changed",
    [{"facilities": 1}, {"keys": 1}, {"file": "../x.yaml"}, {"csv_sha256": ""}, {"token": ""}],
)
def test_what_an_officer_has_written_otherwise(stage: Stage, changed: dict[str, Any]) -> None:
    """The counts that others read, and the name of the file, are those of the CSV."""
    content = facilities(3)
    good = stage.propose("enrol", content).proposal.details
    with pytest.raises(CallError, match="OPERATION_REFUSED"):
        stage.put(stage.crafted("enrol", **{**good, **changed}), content)
    with pytest.raises(CallError, match="is not the CSV that the operation names"):
        stage.put(stage.crafted("enrol", **good), facilities(4))
    assert stage.put(stage.crafted("enrol", **good), content).state is OperationState.PROPOSED


def test_a_policy_that_was_put_in_force_since(stage: Stage) -> None:
    first, second = facilities(2), table(row(facility="z-1"))
    late = stage.propose("enrol", first).id
    stage.done("enrol", second)
    stage.approve(late)
    assert "another policy was put in force since" in stage.operation(late).note
    stage.done("enrol", first)
    assert {"n-0", "n-1", "z-1"} <= stage.snapshot.policy.facilities.keys()


def test_a_csv_is_enrolled_once(stage: Stage) -> None:
    stage.done("enrol", facilities(2))
    problems = stage.problems("enrol", facilities(2))
    assert "line 2: facility n-0 is in the policy already" in problems
    assert problems[-1].endswith("is in the policy already: this CSV was enrolled before")


def test_a_key_that_is_there_already(stage: Stage) -> None:
    stage.key("facilities/n-1/keys/records", activate=False)
    [problem] = stage.problems("enrol", table(row()))
    assert problem == "line 2: facilities/n-1/keys/records exists already"


def test_a_full_token_halfway_names_what_is_there_and_goes_on_from_it(stage: Stage) -> None:
    stage.token.room = 60
    operation = stage.do("enrol", facilities(70))
    assert operation.state is OperationState.FAILED
    assert "the token is full" in operation.note
    assert (operation.done, operation.total) == (60, 70)
    registered = {v.cka_id for v in stage.registry.state().keys}
    assert registered == {each.cka_id for each in stage.token.inventory()}
    assert "n-1" not in stage.snapshot.policy.facilities
    stage.token.room = None
    stage.proposals.retry(C, operation.id)
    assert stage.operation(operation.id).state is OperationState.DONE
    assert stage.token.generated == 70
    assert len(stage.registry.state().keys) == 70


@pytest.mark.parametrize("points", [5, 60, 110, 160, 270])
def test_a_crash_at_any_point_neither_loses_nor_repeats(stage: Stage, points: int) -> None:
    identity = stage.propose("enrol", facilities(120)).id
    stage.fate.crash_after(points)
    with pytest.raises(Crash):
        stage.approve(identity)
    stage.start()
    if stage.operation(identity).state is OperationState.PROPOSED:
        stage.approve(identity)
    assert stage.operation(identity).state is OperationState.DONE
    assert stage.token.generated == 120
    keys = stage.registry.state().keys
    assert {v.cka_id for v in keys} == stage.token.keys.keys()
    assert {v.state for v in keys} == {KeyState.ACTIVE}


def test_an_enrolment_is_followed_in_its_parts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all of it is read again, each time that the daemon looks at the registry."""
    read, generate = stage.registry.state, stage.token.generate
    anew, seen, made = list[bool](), list[int](), count(1)

    def state(since: KeyIndex | None = None) -> RegistryState:
        anew.append(since is None)
        return read(since)

    def generated(*arguments: Any) -> bytes:
        if next(made) % 60 == 0:
            stage.serving.compare()
            seen.append(len(stage.snapshot.keys))
        return generate(*arguments)

    monkeypatch.setattr(stage.registry, "state", state)
    monkeypatch.setattr(stage.token, "generate", generated)
    stage.done("enrol", facilities(3 * BATCH))
    assert seen == [BATCH, 2 * BATCH]
    assert not any(anew)
    assert not stage.serving.reason


def test_a_key_of_another_operation_in_between(stage: Stage) -> None:
    identity = stage.propose("enrol", facilities(3)).id
    stage.key("facilities/n-1/keys/records", activate=False)
    stage.approve(identity)
    assert "n-1/keys/records exists already" in stage.operation(identity).note
    assert len(stage.token.keys) == 1
    assert CLINIC not in map(str, stage.registry.state().keys.names())


@pytest.mark.parametrize("column", [*HEAD.split(","), "quotas", "hours"])
def test_a_long_cell_is_not_whole_in_its_mistake(column: str) -> None:
    cells = dict(zip(HEAD.split(","), row().split(","), strict=True))
    cells |= {"quotas": "", "hours": "", column: "x" * 1000}
    _, _, mistakes = read_table(table(",".join(cells.values()), head=",".join(cells)))
    assert all("x" * 101 not in str(mistake) for mistake in mistakes)
