"""Vaccination payloads that the tests and the demo have signed."""

from pathlib import Path

_PUBLISHED = Path(__file__).parents[3] / "shared/vectors/dcc-schema/examples/vaccination"
_OURS = Path(__file__).parent / "vaccinations"


def vaccinations() -> dict[str, bytes]:
    """JSON payloads by name: the published examples where they lie, else our own."""
    folder = _PUBLISHED if _PUBLISHED.is_dir() else _OURS
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.json"))}
