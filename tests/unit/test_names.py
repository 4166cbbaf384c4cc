"""No class and no module of the product has the name of another one."""

import ast
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = [
    path.relative_to(ROOT)
    for path in sorted((ROOT / "signer").rglob("*.py"))
    if not {"v1", "migrations"} & set(path.relative_to(ROOT).parts)
]
MIRRORS = "signer/client/_values.py"
"""The client's values have the names of the API's messages, as the server's values do."""


def shared(names: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    return {name: places for name, places in names.items() if len(places) > 1}


def test_no_two_modules_have_one_name() -> None:
    """Except modules of commands, which have the names of their commands."""
    modules: dict[str, list[str]] = defaultdict(list)
    for path in PRODUCT:
        name = path.parent.name if path.name == "__init__.py" else path.stem
        if path.parts[1] != "cli" and name != "__main__":
            modules[name].append(str(path))
    assert not shared(modules)


def test_no_two_classes_have_one_name() -> None:
    classes: dict[str, list[str]] = defaultdict(list)
    for path in PRODUCT:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ClassDef) and str(path) != MIRRORS:
                classes[node.name].append(f"{path}:{node.lineno}")
    assert not shared(classes)
