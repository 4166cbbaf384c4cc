import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from signer.cli.policy import policy
from signer.errors import ConfigError, OperatorError
from tests.commands import WIDE

REPOSITORY = Path(__file__).parents[3]
CONFIG = str(REPOSITORY / "config" / "signer.yaml")
CLINIC = "spiffe://signer.example/facility/01-001"
PROVINCE = "spiffe://signer.example/province/01"
NOON = "2026-03-02T12:00:00+07:00"


def run(command: str, *options: str) -> Result:
    return CliRunner(env=WIDE).invoke(policy, [command, "--config", CONFIG, *options])


def explain(*options: str, principal: str = CLINIC) -> Result:
    key = "facilities/01-001/keys/records"
    return run("explain", "--principal", principal, "--key", key, "--at", NOON, *options)


def test_show_prints_each_key_with_rules_of_its_own_in_80_columns() -> None:
    result = run("show")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    heads = [line for line in lines if not line.startswith(" ")]
    assert [head for head in heads if head.startswith(("01-001", "moh"))] == [
        "01-001, key *, group 01",
        "moh, key *",
        "moh, key dcc",
        "moh, key digest",
    ]
    text = " ".join(result.stdout.split())
    assert "quotas: 200 per second, 50000 per day; hours: mon-sat 06:00-20:00" in text


def test_show_one_facility_names_the_rules() -> None:
    result = run("show", "--facility", "moh")
    assert result.exit_code == 0
    assert "facilities.moh.keys.digest.formats" in result.stdout
    assert "profiles.ministry.hcert" in result.stdout
    assert "01-001" not in result.stdout


def test_show_tells_that_beside_hcert_a_key_must_be_listed() -> None:
    lines = run("show", "--facility", "moh").stdout.split("\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row for row in cells if row[1:2] == ["formats"]] == [
        ["*", "formats", "none", "facilities.moh.keys"],
        ["dcc", "formats", "HCERT", "facilities.moh.keys.dcc.formats"],
        ["digest", "formats", "DIGEST", "facilities.moh.keys.digest.formats"],
    ]
    overview = run("show").stdout.partition("moh, key *")[2].splitlines()
    assert overview[1].startswith("  formats: none; ")
    assert overview[0] == ""
    (others,) = (
        row
        for row in json.loads(run("show", "--facility", "moh", "--json").stdout)
        if row["key"] == "*"
    )
    assert others["formats"] == []
    assert others["rules"]["formats"] == "facilities.moh.keys"


def test_show_as_json() -> None:
    rows = json.loads(run("show", "--json").stdout)
    clinic = next(row for row in rows if row["facility"] == "01-001")
    assert clinic["clients"] == [CLINIC, PROVINCE]
    assert clinic["max_batch_items"] == 200
    assert clinic["quotas"] == ["200 per second", "50000 per day"]
    assert clinic["hours"] == "mon-sat 06:00-20:00 Asia/Ho_Chi_Minh"
    assert clinic["valid_until"] == "2029-12-31T17:00:00Z"
    assert clinic["rules"]["max_batch_items"] == "facilities.01-001.max_batch_items"
    digest = next(row for row in rows if row["key"] == "digest")
    assert digest["formats"] == ["DIGEST"]
    assert digest["hcert"] == {"issuer": "VN", "validity_days": 365}
    assert digest["content"]["future_dates"] is False


def test_show_unknown_facility() -> None:
    result = run("show", "--facility", "nowhere")
    assert isinstance(result.exception, OperatorError)
    assert "no facility nowhere" in str(result.exception)


def test_explain_allowed_and_denied_set_the_exit_code() -> None:
    allowed = explain("--format", "JWS", principal=PROVINCE)
    assert allowed.exit_code == 0
    assert "allowed" in allowed.stdout
    assert "groups.01.clients" in allowed.stdout
    denied = explain("--format", "HCERT")
    assert denied.exit_code == 1
    assert "profiles.clinic.formats" in denied.stdout


def test_explain_says_that_a_facility_is_unknown() -> None:
    asked = explain("--key", "facilities/nowhere/keys/records", "--json")
    assert asked.exit_code == 1
    assert {one["rule"] for one in json.loads(asked.stdout)} == {"default.deny"}
    assert "the policy has no facility nowhere: `signer policy show` lists" in asked.stderr
    assert "no facility" not in explain().stderr


def test_explain_without_format_tells_all() -> None:
    result = explain("--json")
    assert result.exit_code == 0
    decisions = {one["format"]: one for one in json.loads(result.stdout)}
    assert {name for name, one in decisions.items() if one["allowed"]} == {
        "JWS",
        "MESSAGE",
        "COSE_SIGN1",
    }
    assert decisions["DIGEST"]["reason"] == "POLICY_DENIED"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("--principal", "spiffe://signer.example/stranger"),
            {"reason": "PEER_UNKNOWN", "rule": "default.deny"},
        ),
        (
            ("--format", "JWS", "--at", "2026-03-02T21:00:00+07:00"),
            {"reason": "CLOSED_HOURS", "retry_after_seconds": 9 * 3600},
        ),
        (
            (
                *("--principal", "spiffe://signer.example/ministry"),
                *("--key", "facilities/moh/keys/next"),
            ),
            {"rule": "facilities.moh.keys"},
        ),
    ],
    ids=["stranger", "at night", "a key that must be listed"],
)
def test_explain_a_refusal(options: tuple[str, ...], expected: dict[str, object]) -> None:
    result = explain(*options, "--json")
    assert result.exit_code == 1
    for decision in json.loads(result.stdout):
        assert expected.items() <= decision.items()
        assert ("list the key" in decision["message"]) == ("--key" in options)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--key", "records"), ("--format", "PDF"), ("--at", "noon"), ("--at", "2026-03-02T12:00")],
)
def test_what_cannot_be_read_is_wrong_usage(option: str, value: str) -> None:
    result = explain(option, value)
    assert result.exit_code == 2
    assert option in result.stderr


def show_policy(folder: Path, text: str) -> Result:
    (folder / "policy").mkdir()
    (folder / "policy" / "p.yaml").write_text(text)
    config = shutil.copy(CONFIG, folder)
    return CliRunner(env=WIDE).invoke(policy, ["show", "--config", str(config)])


def test_wrong_policy_is_refused(tmp_path: Path) -> None:
    result = show_policy(tmp_path, "profiles: {}\n")
    assert isinstance(result.exception, ConfigError)
    assert "facilities: is missing" in str(result.exception)


def test_empty_policy_lets_nobody_sign(tmp_path: Path) -> None:
    result = show_policy(tmp_path, "profiles: {}\nfacilities: {}\n")
    assert result.exit_code == 0
    assert "no client may sign" in result.stdout


MINISTRY = "spiffe://signer.example/ministry"


def judge(tmp_path: Path, *options: str, **changes: object) -> tuple[int, dict[str, object]]:
    """Explains a payload for the ministry's key for certificates."""
    [sample] = (REPOSITORY / "tests/e2e/vaccinations").glob("first-dose.json")
    file = tmp_path / "payload.json"
    document = json.loads(sample.read_bytes())
    document["v"][0] |= changes.pop("entry", {})
    file.write_text(json.dumps(document | changes))
    names = ("--principal", MINISTRY, "--key", "facilities/moh/keys/dcc", "--at", NOON)
    result = run("explain", *names, "--format", "HCERT", "--payload", str(file), *options, "--json")
    [decision] = json.loads(result.stdout)
    return result.exit_code, decision


def test_explain_judges_a_payload(tmp_path: Path) -> None:
    code, decision = judge(tmp_path)
    assert (code, decision["allowed"], decision["rule"]) == (0, True, "facilities.moh.clients")
    code, decision = judge(tmp_path, entry={"co": "LA"})
    assert (code, decision["allowed"]) == (1, False)
    assert decision["reason"] == "CONTENT_DENIED"
    assert decision["rule"] == "profiles.ministry.content.countries"
    code, decision = judge(tmp_path, dob="yesterday")
    assert (code, decision["reason"], decision["rule"]) == (1, "PAYLOAD_INVALID", "")
    assert str(decision["message"]).startswith("dob should be ")
    # The time is that of --at.
    code, decision = judge(tmp_path, "--at", "2021-08-01T00:00:00+07:00")
    assert (code, decision["rule"]) == (1, "profiles.ministry.content.future_dates")


def test_explain_says_of_a_payload_in_which_formats_it_may_be_signed(tmp_path: Path) -> None:
    file = tmp_path / "payload.json"
    file.write_bytes(b"no JSON")
    result = explain("--payload", str(file), "--json")
    assert result.exit_code == 0
    allowed = {each["format"]: each["allowed"] for each in json.loads(result.stdout)}
    assert allowed == {
        "DIGEST": False,
        "MESSAGE": True,
        "JWS": False,
        "COSE_SIGN1": True,
        "HCERT": False,
        "CMS": False,
        "TIMESTAMP": False,
        "SHC": False,
        "CMS_DIGEST": False,
    }


def test_explain_needs_a_payload_that_can_be_read(tmp_path: Path) -> None:
    assert explain("--payload", str(tmp_path / "none")).exit_code == 2
