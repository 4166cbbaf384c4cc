"""Reads policies: their files, or their one text, to the rules that they make."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from signer.config.document_kinds import Kind, refuse_others
from signer.config.policy_files import PolicyFile, policy_files, policy_text, read_files
from signer.config.strict_yaml import document_of, refuse, together
from signer.errors import Violation
from signer.policy.compile import compile_policy
from signer.policy.rules import Policy


class PolicyText(NamedTuple):
    """A policy and the bytes whose SHA-256 is its ``sha256``."""

    policy: Policy
    text: bytes


def load_policy(path: Path) -> Policy:
    """Reads a policy; see ``read_policy``."""
    return read_policy(path).policy


def read_policy(path: Path) -> PolicyText:
    """Reads a policy: one file, or the ``*.yaml`` of a directory in the order of their names.

    Files are merged section by section; no name may be in two of them. Raises ConfigError
    with all mistakes.
    """
    return _policy_of(read_files(path), path)


def read_policy_text(text: bytes, source: str = "the policy in force") -> PolicyText:
    """Reads a policy from its text; raises ConfigError, or ValueError for another text."""
    return _policy_of(policy_files(text), Path(source))


def _policy_of(files: Sequence[PolicyFile], source: Path) -> PolicyText:
    unread: list[Violation] = []
    merged: dict[str, object] = {}
    origins: dict[str, str] = {}
    for file in files:
        document = document_of(file.content, Path(file.name), unread)
        refuse_others(document, Path(file.name), Kind.POLICY)
        _merge(merged, document, file.name, origins, unread)
    problems: list[Violation] = []
    whole = policy_text(files)
    policy = compile_policy(merged, hashlib.sha256(whole).hexdigest(), problems)
    if unread or problems:
        refuse(source, together(unread, problems))
    return PolicyText(policy, whole)


def _merge(
    merged: dict[str, object],
    document: Mapping[str, object],
    file: str,
    origins: dict[str, str],
    problems: list[Violation],
) -> None:
    """Adds the sections of one file: lists are joined, mappings merged name by name."""
    for section, content in document.items():
        existing = merged.setdefault(section, type(content)())
        if isinstance(existing, list) and isinstance(content, list):
            existing.extend(content)
        elif isinstance(existing, dict) and isinstance(content, dict):
            for name, part in content.items():
                path = f"{section}.{name}"
                if path in origins:
                    problems.append(Violation(path, f"is in {origins[path]} and in {file}"))
                origins[path] = file
                existing[name] = part
        else:
            merged[section] = content
