"""The error table is the contract's, it is total, and the code keeps to it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import grpc

from signer.errors import CallError, Code, ConfigError, Extent, Reason, Violation, invalid

SOURCE = Path(__file__).parents[2] / "signer"

CONTRACT = {  # callers rely on it: docs/errors.md
    "PEER_UNKNOWN": ("call", "UNAUTHENTICATED"),
    "POLICY_DENIED": ("call", "PERMISSION_DENIED"),
    "KEY_NOT_FOUND": ("call", "NOT_FOUND"),
    "KEY_VERSION_NOT_ACTIVE": ("call item", "FAILED_PRECONDITION"),
    "KEY_VERSION_EXHAUSTED": ("call", "FAILED_PRECONDITION"),
    "FIELD_INVALID": ("call", "INVALID_ARGUMENT"),
    "QUOTA_EXCEEDED": ("call", "RESOURCE_EXHAUSTED"),
    "CLOSED_HOURS": ("call", "FAILED_PRECONDITION"),
    "OVERLOADED": ("call", "RESOURCE_EXHAUSTED"),
    "DEADLINE_TOO_SHORT": ("call", "DEADLINE_EXCEEDED"),
    "PAYLOAD_INVALID": ("item", "INVALID_ARGUMENT"),
    "CONTENT_DENIED": ("item", "PERMISSION_DENIED"),
    "HSM_UNAVAILABLE": ("item", "UNAVAILABLE"),
    "CLOCK_DOUBTFUL": ("call", "UNAVAILABLE"),
    "AUDIT_UNAVAILABLE": ("call", "UNAVAILABLE"),
    "REQUEST_ID_REUSED": ("call", "INVALID_ARGUMENT"),
    "INTERNAL": ("call item", "INTERNAL"),
    # of officers' operations
    "OPERATION_NOT_FOUND": ("call", "NOT_FOUND"),
    "OPERATION_REFUSED": ("call", "FAILED_PRECONDITION"),
    "APPROVAL_INVALID": ("call", "PERMISSION_DENIED"),
    "REGISTRY_UNAVAILABLE": ("call", "UNAVAILABLE"),
    # of streams
    "STREAM_ENDED": ("call", "UNAVAILABLE"),
}


def test_the_table_is_the_contract() -> None:
    words = {Extent.CALL: "call", Extent.ITEM: "item", Extent.BOTH: "call item"}
    assert {str(reason): (words[reason.scope], reason.code.name) for reason in Reason} == CONTRACT
    assert all(reason.name == reason.value for reason in Reason)


def test_codes_are_those_of_grpc() -> None:
    known = {code.name: code.value[0] for code in grpc.StatusCode}
    assert {code.name: code.value for code in Code} == {
        code.name: known[code.name] for code in Code
    }
    assert {reason.code for reason in Reason} == set(Code)


def test_trying_again_helps_only_where_something_passes() -> None:
    retryable = {reason for reason in Reason if reason.retryable}
    assert retryable == {
        Reason.QUOTA_EXCEEDED,
        Reason.OVERLOADED,
        Reason.HSM_UNAVAILABLE,
        Reason.AUDIT_UNAVAILABLE,
        Reason.CLOCK_DOUBTFUL,
        Reason.REGISTRY_UNAVAILABLE,
        Reason.STREAM_ENDED,
    }


MAKERS = {"CallError": Extent.CALL, "Failure": Extent.ITEM, "PayloadError": Extent.ITEM}
"""Who makes errors out of a reason, and what those befall."""


def made_errors() -> Iterator[tuple[str, Reason, Extent]]:
    """Every place in our code that makes an error with a reason written out."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            reason = node.args[0]
            if (
                node.func.id in MAKERS
                and isinstance(reason, ast.Attribute)
                and isinstance(reason.value, ast.Name)
                and reason.value.id == "Reason"
            ):
                place = f"{path.relative_to(SOURCE)}:{node.lineno}"
                yield place, Reason[reason.attr], MAKERS[node.func.id]


def test_an_error_befalls_what_the_table_says() -> None:
    made = list(made_errors())
    assert [(place, reason) for place, reason, scope in made if scope not in reason.scope] == []
    assert len(made) > 20


def test_every_reason_is_used() -> None:
    written = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    assert {reason for reason in Reason if f"Reason.{reason.name}" not in written} == set()


def test_texts_of_errors() -> None:
    error = invalid("payloads", "is empty")
    assert (error.reason, error.message) == (Reason.FIELD_INVALID, "payloads: is empty")
    assert error.violations == (Violation("payloads", "is empty"),)
    assert str(CallError(Reason.OVERLOADED, "try again")) == "OVERLOADED: try again"
    problems = [Violation("a.b", "is missing"), Violation("", "cannot be read")]
    refused = ConfigError("policy.yaml", problems)
    assert str(refused) == "policy.yaml is refused:\n  a.b: is missing\n  cannot be read"
    assert refused.problems == tuple(problems)
