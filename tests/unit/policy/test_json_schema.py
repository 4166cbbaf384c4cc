"""JSON schemas of the policy: bounded, without surprises, and with faults that quote no value."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.policy.json_schema import BadSchema, read_schema

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["n", "dt", "v"],
    "properties": {
        "n": {"type": "string", "minLength": 1, "maxLength": 80},
        "dt": {"type": "string", "format": "date"},
        "at": {"type": "string", "format": "date-time"},
        "v": {"type": "array", "items": {"$ref": "#/$defs/vaccine"}},
    },
    "additionalProperties": {"type": "string"},
    "$defs": {"vaccine": {"type": "object", "properties": {"code": {"enum": ["A", "B"]}}}},
}
GOOD: dict[str, Any] = {"n": "Nguyen", "dt": "2024-02-29", "v": [{"code": "A"}]}
SECRET = "MARKER"


@pytest.mark.parametrize(
    ("changes", "member", "text"),
    [
        ({}, None, ""),
        ({"at": "2024-01-01T08:00:00+07:00", "more": "text"}, None, ""),
        ({"n": ""}, "n", 'breaks "minLength"'),
        ({"n": SECRET * 20}, "n", 'breaks "maxLength"'),
        ({"n": 7}, "n", "should be of the type string"),
        ({"dt": "2023-02-29"}, "dt", 'breaks "format"'),
        ({"dt": "20240101"}, "dt", 'breaks "format"'),
        ({"at": "2024-01-01T08:00:00"}, "at", 'breaks "format"'),
        ({"at": "2024-01-01T25:00:00Z"}, "at", 'breaks "format"'),
        ({"v": [{"code": "A"}, {"code": SECRET}]}, "v.1.code", 'breaks "enum"'),
        ({"v": None}, "v", "should be of the type array"),
        ({SECRET: 1}, "*", "should be of the type string"),
    ],
)
def test_a_fault_names_member_and_keyword_and_no_value(
    changes: dict[str, Any], member: str | None, text: str
) -> None:
    fault = read_schema("s", SCHEMA).fault(GOOD | changes)
    if member is None:
        assert fault is None
    else:
        assert fault is not None
        assert (fault.member, text in fault.text) == (member, True)
        assert SECRET not in str(fault)


def test_a_member_that_is_missing_is_named() -> None:
    fault = read_schema("s", SCHEMA).fault({"n": "x", "v": []})
    assert fault == ("dt", "is missing")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"type": "objekt"}, "is not a JSON schema: type breaks"),
        ({"pattern": "(a+)+"}, "has pattern, which is not checked here"),
        ({"properties": {"n": {"pattern": "a"}}}, "properties.n has pattern"),
        ({"uniqueItems": True}, "has uniqueItems"),
        ({"$dynamicRef": "#x"}, "has $dynamicRef"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "has another $schema"),
        ({"$ref": "https://who.example/dvc.json"}, "references should be #/$defs/NAME"),
        ({"$ref": ""}, "references should be #/$defs/NAME"),
        (
            {"$ref": "#/$defs/a%62", "$defs": {"a%62": {}, "vaccine": {}}},
            "references should be #/$defs/NAME",
        ),
        ({"$ref": "#/default", "default": {"type": "foo"}}, "references should be #/$defs/NAME"),
        ({"properties": {1: {}}}, "has the name 1, which is not text"),
        ({"$ref": "#"}, "references should be #/$defs/NAME"),
        ({"$ref": "#/$defs/other"}, "which the schema does not have"),
        ({"properties": {"n": {"$id": "https://who.example/"}}}, "only the whole schema may"),
        ({"$defs": {"vaccine": {"$ref": "#/$defs/vaccine"}}}, "which it is in"),
        ({"$defs": {"vaccine": {"items": {"$ref": "#/$defs/vaccine"}}}}, "which it is in"),
    ],
)
def test_a_schema_that_is_not_bounded_or_not_one_is_refused(
    changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(BadSchema) as caught:
        read_schema("s", SCHEMA | changes)
    assert text in str(caught.value)


@pytest.mark.parametrize("schema", [True, [], "x", 1])
def test_a_schema_is_a_mapping(schema: object) -> None:
    with pytest.raises(BadSchema, match="should be a mapping"):
        read_schema("s", schema)


def test_references_do_not_multiply_without_bound() -> None:
    """Ten levels of which each refers twice to the next: small to read, long to follow."""
    definitions: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]}
        for n in range(20)
    }
    definitions["d20"] = {"type": "object"}
    with pytest.raises(BadSchema, match="more than 400 schemas"):
        read_schema("s", {"$ref": "#/$defs/d0", "$defs": definitions})


def test_the_id_of_a_schema_is_not_where_its_references_lead() -> None:
    schema = {
        "$id": "https://who.example/dvc.json",
        "properties": {"a": {"$ref": "#/$defs/a"}, "b": False},
        "$defs": {"a": {"type": "integer", "exclusiveMinimum": 0}},
    }
    read = read_schema("s", schema)
    assert read.fault({"a": 1}) is None
    assert read.fault({"a": 0}) == ("a", 'breaks "exclusiveMinimum" of the schema')
    assert read.fault({"b": 1}) == ("", 'breaks "false" of the schema')


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["n", "dt", "at", "v", "x"]), VALUES))
def test_whatever_a_payload_has_it_is_judged(payload: dict[str, Any]) -> None:
    read = read_schema("s", json.loads(json.dumps(SCHEMA)))
    fault = read.fault(payload)
    assert fault is None or fault.text


def test_a_deep_schema_is_refused() -> None:
    schema: dict[str, object] = {}
    for _ in range(300):
        schema = {"not": schema}
    with pytest.raises(BadSchema, match="more than 32 levels"):
        read_schema("s", schema)


def test_a_payload_has_as_many_values_as_the_schema_has_time_for() -> None:
    choice = {"items": {"oneOf": [{"const": number} for number in range(100)]}}
    schema = read_schema("s", {"properties": {"a": choice}})
    assert schema.fault({"a": [7] * 150}) is None
    fault = schema.fault({"a": [7] * 8000})
    assert fault is not None
    assert fault.text == "has 8002 values, and with this schema it may have 194"
    plain = read_schema("s", {"properties": {"a": {"items": {"enum": list(range(500))}}}})
    assert plain.fault({"a": [7] * 500}) is None


def test_a_number_that_the_library_cannot_divide_breaks_the_schema() -> None:
    schema = read_schema("s", {"properties": {"a": {"multipleOf": 0.5}}})
    fault = schema.fault({"a": float("inf")})
    assert fault is not None
    assert fault.text == "cannot be compared with the schema"


def test_a_long_chain_of_references_is_refused() -> None:
    definitions = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1100)}
    with pytest.raises(BadSchema, match="more than 100 levels"):
        read_schema("s", {"$ref": "#/$defs/d0", "$defs": definitions | {"d1100": {}}})


def test_a_policy_without_schemas_loads_none_of_their_packages() -> None:
    """They would take a tenth of a start."""
    program = (
        "import sys; from signer.policy.compile import compile_policy; problems = [];"
        "compile_policy({'profiles': {}, 'facilities': {}, 'schemas': SCHEMAS}, '', problems);"
        "print(problems, 'jsonschema' in sys.modules)"
    )
    for schemas, loaded in (("{}", "[] False"), ("{'s': {}}", "[] True")):
        command = [sys.executable, "-c", program.replace("SCHEMAS", schemas)]
        ran = subprocess.run(command, capture_output=True, check=True, text=True)
        assert ran.stdout.strip() == loaded
