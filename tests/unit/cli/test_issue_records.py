"""Records of `signer issue`: what is read, and how mistakes are listed."""

import json
import re
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.cli.issue.names import composed, standardised
from signer.cli.issue.records import COVID_19, CertificateIssuer, PersonRecord, read_records
from signer.errors import ConfigError
from signer.formats import dcc, dcc_schema
from tests.synthetic import Person, as_csv, as_json_lines, people

ISSUER = CertificateIssuer("VN", "Ministry of Health", "URN:UVCI:01:VN:")
UVCI = "URN:UVCI:01:VN:00FF"
GOOD: Person = {**people(1)[0], "surname": "Nguyễn", "forenames": "Thị Mẫu", "born": "1985-04-12"}


def read(text: str | bytes) -> list[PersonRecord]:
    return read_records("file", text if isinstance(text, bytes) else text.encode(), ISSUER)


def mistakes(text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        read(text)
    return [str(problem) for problem in refused.value.problems]


def wrong(**members: str) -> list[str]:
    return mistakes(as_csv([GOOD | members]))


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Nguyễn", "NGUYEN"),
        ("Thị Mẫu", "THI<MAU"),
        ("Đặng", "DANG"),
        ("đỗ", "DO"),
        ("Ưng Hoàng Phúc", "UNG<HOANG<PHUC"),
        ("O\u2019Brien", "OBRIEN"),
        ("O'Brien", "OBRIEN"),
        ("Dupont-Léger", "DUPONT<LEGER"),
        ("Müller", "MUELLER"),
        ("Groß", "GROSS"),
        ("Łukasz", "LUKASZ"),
        ("Jr.", "JR"),
        ("A - B", "A<B"),
        ("ﬁ", "FI"),
        ("x" * 79 + " y", "X" * 79),
    ],
)
def test_names_for_machine_readers(name: str, expected: str) -> None:
    for form in ("NFC", "NFD"):
        assert standardised(composed(unicodedata.normalize(form, name))) == expected


@pytest.mark.parametrize("name", ["Нгуен", "阮", "Nguyễn2", "Nguy?n", "Đ(ỗ)", "-", "\u2019"])
def test_what_is_no_latin_name_is_refused_and_not_quoted(name: str) -> None:
    with pytest.raises(ValueError, match=r"not a Latin letter|has no letters") as refused:
        standardised(name)
    assert name not in str(refused.value).removeprefix("has")


@given(st.text())
def test_a_standardised_name_is_one_of_the_schema(name: str) -> None:
    try:
        made = standardised(composed(name))
    except ValueError:
        return
    assert re.fullmatch(r"[A-Z]+(<[A-Z]+)*", made)
    assert len(made) <= 80


# --- files --------------------------------------------------------------------------------------

FILES: dict[str, Callable[[list[Person]], str]] = {
    "commas": as_csv,
    "semicolons": lambda records: as_csv(records, ";"),
    "tabs": lambda records: as_csv(records, "\t"),
    "a byte order mark": lambda records: "\ufeff" + as_csv(records, ";"),
    "line ends of Windows": lambda records: as_csv(records).replace("\n", "\r\n"),
    "empty lines": lambda records: as_csv(records).replace("\n", "\n\n"),
    "capitals in the header": lambda records: as_csv(records).replace("record,", "Record ,", 1),
    "JSON lines": as_json_lines,
    "JSON lines of Windows": lambda records: (
        "\ufeff" + as_json_lines(records).replace("\n", "\r\n")
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_all_kinds_say_the_same(kind: str) -> None:
    records = people(200)
    expected, found = read(as_csv(records)), read(FILES[kind](records))
    assert [each[1:] for each in found] == [each[1:] for each in expected]


def test_records_become_certificates_that_the_schema_accepts() -> None:
    records = people(2000)
    one_name = years = 0
    for person, made in zip(records, read(as_csv(records)), strict=True):
        certificate = dcc.read(made.certificate(UVCI))
        assert dcc_schema.fault(*certificate) is None
        names = certificate.document["nam"]
        given_names = [person[name] for name in ("surname", "forenames") if person[name]]
        assert [names[name] for name in ("fn", "gn") if name in names] == [
            unicodedata.normalize("NFC", name) for name in given_names
        ]
        assert certificate.document["dob"] == person["born"]
        assert certificate.entry["ci"] == UVCI
        assert certificate.entry["tg"] == COVID_19
        one_name += len(given_names) == 1
        years += len(person["born"]) == 4
        signed = json.loads(made.signed_by_facility(UVCI))
        assert signed["name"] == names
        assert signed["born"] == certificate.document["dob"]
        assert signed["vaccination"] == certificate.entry
        assert signed["facility"] == person["facility"]
    assert one_name > 20
    assert years > 50


def test_the_content_of_a_record_changes_with_all_that_is_certified() -> None:
    contents = {
        read(as_csv([GOOD | changed]))[0].content
        for changed in (
            {},
            {"surname": "Nguyên"},
            {"born": "1985-04-13"},
            {"date": "2021-06-12"},
            {"dose": "9"},
            {"facility": "01-999"},
        )
    }
    assert len(contents) == 6
    same = GOOD | {"record": "other", "surname": unicodedata.normalize("NFD", "Nguyễn ")}
    assert read(as_csv([same]))[0].content == read(as_csv([GOOD]))[0].content


def test_own_forms_of_names_and_an_unknown_birthday() -> None:
    person = {**GOOD, "born": "", "surname": "阮", "surname_standard": "nguyen van"}
    [made] = read(as_json_lines([person]))
    assert made.document["nam"]["fnt"] == "NGUYEN<VAN"
    for same in ("NGUYEN<VAN", "nguyen  van", "NGUYEN<VAN<<<<<<"):
        [made] = read(as_json_lines([person | {"surname_standard": same}]))
        assert made.document["nam"]["fnt"] == "NGUYEN<VAN"
    assert made.document["dob"] == ""


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"record": ""}, "line 2, record: should be 1 to 64 of letters"),
        ({"record": "=1+1"}, "line 2, record: should be 1 to 64 of letters"),
        ({"facility": "Hà Nội"}, "line 2, facility: should be the id of a facility"),
        ({"surname": "", "forenames": " "}, "line 2, surname: is missing, and forenames, too"),
        ({"surname": "阮"}, "line 2, surname: has a character that is not a Latin letter: give"),
        ({"surname": "a\u202eb"}, "line 2, surname: has characters that cannot be printed"),
        ({"surname": "x" * 81}, "line 2, surname: should be a text of at most 80 characters"),
        ({"born": "12.04.1985"}, "line 2, born: should be empty or YYYY, YYYY-MM or YYYY-MM-DD"),
        ({"dose": "0"}, "line 2, dose: should be a whole number from 1"),
        ({"doses": "two"}, "line 2, doses: should be a whole number from 1"),
        ({"date": "2021-02-30"}, "line 2, date: should be a day that the calendar has"),
        ({"date": "1985-04-11"}, "line 2, date: is before born"),
        ({"vaccine": ""}, "line 2, vaccine: should be a code of its value set"),
    ],
)
def test_a_mistake_names_line_and_member_and_no_value(
    members: dict[str, str], expected: str
) -> None:
    [said] = wrong(**members)
    assert said.startswith(expected)
    for value in members.values():
        assert len(value.strip()) < 3 or value not in said


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"surname": "NGUYEN<THI"}, "surname: has <: write a blank; surname_standard is as in"),
        ({"surname": "A<B", "surname_standard": "A<B"}, "surname: has <: write a blank"),
        ({"surname_standard": "NGUYEN<<THI<MAU"}, "surname_standard: begins with < or has <<"),
        ({"forenames_standard": "<MAU"}, "forenames_standard: begins with < or has <<"),
        ({"surname_standard": "NGUYEN-VAN"}, "surname_standard: should be at most 80 of the"),
        ({"surname": "", "surname_standard": "X"}, "surname: is missing, but surname_standard is"),
        (
            {"forenames": "", "forenames_standard": "X"},
            "forenames: is missing, but forenames_standard is there",
        ),
        ({"date": "2021-06-11T24:00:00Z"}, "date: should be a date YYYY-MM-DD, or a time with"),
    ],
)
def test_names_of_passports_are_in_their_own_members(
    members: dict[str, str], expected: str
) -> None:
    said = mistakes(as_json_lines([GOOD | members]))
    assert len(said) == 1, said
    assert said[0].startswith(f"line 1, {expected}")


@pytest.mark.parametrize("member", [*GOOD, "surname_standard", "forenames_standard", "target"])
def test_a_long_cell_is_not_in_its_error(member: str) -> None:
    for said in mistakes(as_json_lines([GOOD | {member: "~\x07" * 1000}])):
        assert len(said) < 200


def test_all_mistakes_are_listed_at_once() -> None:
    good = [{**GOOD, "record": f"r{number}"} for number in range(6)]
    good[1] |= {"born": "x", "dose": "x"}
    good[3] |= {"date": "x", "facility": "?"}
    good[5]["record"] = "r0"
    assert [said.partition(":")[0] for said in mistakes(as_csv(good))] == [
        "line 3, dose",
        "line 3, born",
        "line 5, facility",
        "line 5, date",
        "line 7, record",
    ]
    assert "is also that of line 2" in mistakes(as_csv(good))[-1]


def test_a_name_over_two_lines_does_not_shift_the_lines() -> None:
    lines = as_csv([GOOD, {**GOOD, "born": "x"}]).splitlines()
    lines[1] = lines[1].replace("Nguyễn", '"Nguyễn\nVăn"')
    said = mistakes("\n".join(lines))
    assert said[0] == "line 2, surname: has characters that cannot be printed"
    assert said[1].startswith("line 4, born")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file has no records"),
        (as_csv([]).encode(), "the file has no records"),
        (as_csv([GOOD]).encode("utf-16"), "the file is UTF-16: save it as CSV in UTF-8"),
        (as_csv([GOOD]).replace("ễ", "ê").encode("latin-1", "replace"), "line 2: is not UTF-8"),
        (as_csv([GOOD]).partition("\n")[2].encode(), "line 1: column 1, 2, 3, 4, 5, 6, 7"),
        (as_csv([GOOD]).replace("born", "notes", 1).encode(), "line 1: column 5 has no name"),
        (b"record,facility,surname\n1,2,3\n", "line 1: has no column born, vaccine"),
        (
            as_csv([GOOD]).replace("surname,forenames", "target,target", 1).encode(),
            "line 1: has no column surname and no column forenames",
        ),
        (
            as_csv([GOOD]).replace("forenames", "surname", 1).encode(),
            "line 1: has two columns surname",
        ),
        ((as_csv([GOOD]) + "1,2\n").encode(), "line 3: has 2 cells, and the first line 11"),
        ((as_csv([GOOD]) + '"open').encode(), "line 3: is not CSV: a quotation mark"),
        (b'{"record": "1", "record": "2"}', "line 1: the line has an object with duplicate"),
        (b'{"record": "1"\n', "line 1: the line is not JSON"),
        (b'{"record": "1", "secret": "2"}', "line 1: member 2 has no name that is known here"),
    ],
)
def test_what_is_not_such_a_file(content: bytes, expected: str) -> None:
    assert mistakes(content)[0].startswith(expected)


def test_json_lines_have_texts_and_numbers() -> None:
    line = json.dumps({**GOOD, "dose": 1, "doses": 2})
    assert read(line)[0].document["v"][0]["sd"] == 2
    for value in (1.5, True, None, ["x"]):
        said = mistakes(json.dumps({**GOOD, "born": value, "dose": value}))
        assert "line 1, born: should be text" in said
        assert any(each.startswith("line 1, dose: should be") for each in said)


def test_mistakes_without_end_are_counted() -> None:
    said = mistakes(as_csv({**GOOD, "record": f"r{n}", "born": "x"} for n in range(1500)))
    assert len(said) == 1001
    assert said[-1] == "and 500 more mistakes"
