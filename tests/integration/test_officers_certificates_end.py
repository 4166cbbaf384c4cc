"""The certificate of one of two officers ends: it is seen, and renewed, on a real appliance."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from tests.appliances import Appliance
from tests.commands import Run

KEY = "facilities/01-001/keys/next"


@pytest.fixture
def appliance(tmp_path: Path) -> Appliance:
    made = Appliance(tmp_path / "dev")
    made.init()
    made.set_workers(1)
    return made


def certificate(appliance: Appliance, folder: Path, valid_for: timedelta) -> tuple[Path, datetime]:
    """Another certificate for officer b and the present key, and when it ends."""
    identity = appliance.dev["clients"]["officer-b"]
    key = load_pem_private_key(Path(identity["key"]).read_bytes(), None)
    now = datetime.now(UTC).replace(microsecond=0)
    subject = x509.Name.from_rfc4514_string("CN=officer b")
    uri = x509.UniformResourceIdentifier(identity["principal"])
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 7, now, now + valid_for)  # type: ignore[arg-type] # one of ours
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())  # type: ignore[arg-type] # one of ours
    )
    file = folder / f"b-{valid_for.total_seconds():.0f}.pem"
    file.write_bytes(made.public_bytes(Encoding.PEM))
    return file, now + valid_for


def test_an_ended_certificate_is_seen_everywhere_and_renewed_by_one_valid_officer(
    appliance: Appliance, run: Run, tmp_path: Path
) -> None:
    config = appliance.dir / "signer.yaml"
    a, b = (("--client", appliance.client_file(f"officer-{who}")) for who in "ab")

    def decide(file: Path) -> str:
        words = ("operations", "propose", "officers", "--add", file, "--yes")
        shown = run(*words, *a)
        assert shown.code == 0, shown.err
        identity = next(each for each in shown.out.split() if each.count("-") == 4)
        approved = run("operations", "approve", identity, "--wait", "--yes", *b)
        assert approved.code == 0, approved.err
        return shown.out

    with appliance:
        file, ends = certificate(appliance, tmp_path, timedelta(seconds=20))
        assert "! the certificate of spiffe://dev.signer.example/officer-b ends in 0 days" in (
            decide(file)
        )
        time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()) + 1.1)

        _, metrics = appliance.get("/metrics")
        assert 'signer_officers{certificate="ended"} 1.0' in metrics
        assert "signer_officers_needed 2.0" in metrics
        _, page = appliance.get("/")
        assert "1 of 2 have a valid certificate; operations need 2" in page
        top = run("top", "--client", appliance.client_file("operator"))
        assert "the certificate of spiffe://dev.signer.example/officer-b has ended" in top.out
        found = json.loads(run("doctor", "--config", config, "--json").out)["findings"]
        [officers] = [each for each in found if each["check"] == "officers"]
        assert officers["level"] == "wrong"

        words = ("create-key", KEY, "--algorithm", "ES256", "--yes", "--id")
        identity = run("operations", "propose", *words, *a).out.strip()
        refused = run("operations", "approve", identity, "--yes", *b)
        assert (refused.code, "APPROVAL_INVALID" in refused.err) == (1, True)
        assert "ended on" in refused.err

        decide(certificate(appliance, tmp_path, timedelta(days=365))[0])
        assert 'signer_officers{certificate="ended"} 0.0' in appliance.get("/metrics")[1]
        done = run("operations", "approve", identity, "--wait", "--yes", *b)
        assert done.code == 0, done.err
        verified = run("audit", "verify", "--config", config, "--json")
        assert (verified.code, json.loads(verified.out)["problems"]) == (0, [])
