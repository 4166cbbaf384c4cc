"""Payloads that the tests and the demo have signed."""

from pathlib import Path
from typing import Any

from tests import vectors

_PUBLISHED = vectors.FOLDER / vectors.DCC_SCHEMA / "examples/vaccination"
_OURS = Path(__file__).parent / "vaccinations"


def vaccinations() -> dict[str, bytes]:
    """JSON payloads by name: the published examples where they lie, else our own."""
    folder = _PUBLISHED if _PUBLISHED.is_dir() else _OURS
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.json"))}


def bundle(**changes: Any) -> dict[str, Any]:
    """Two doses of nobody, as the framework's implementation guide has them."""
    patient = {"resourceType": "Patient", "name": [{"family": "Nguyễn", "given": ["Văn", "Mẫu"]}]}
    doses = [
        {
            "resourceType": "Immunization",
            "status": "completed",
            "vaccineCode": {"coding": [{"system": "http://hl7.org/fhir/sid/cvx", "code": "207"}]},
            "patient": {"reference": "resource:0"},
            "occurrenceDateTime": day,
            "lotNumber": "0000007",
        }
        for day in ("2021-06-11", "2021-07-02")
    ]
    entries = [
        {"fullUrl": f"resource:{index}", "resource": resource}
        for index, resource in enumerate([patient | {"birthDate": "1979-04-14"}, *doses])
    ]
    return {"resourceType": "Bundle", "type": "collection", "entry": entries, **changes}
