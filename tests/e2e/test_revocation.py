"""Certificates are revoked: handles in the answer, and lists that OpenSSL accepts."""

import base64
import json
import subprocess
import uuid
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from signer.client import InvalidRequestError
from tests.commands import Done, signer

DCC, DOCUMENTS = "facilities/moh/keys/dcc", "facilities/moh/keys/documents"
COUNTED = "URN:UVCI:01:VN:REVOKED"


def first_half(data: bytes) -> bytes:
    return sha256(data).digest()[:16]


def uvci_of(payload: bytes) -> str:
    document = json.loads(payload)
    [kind] = [kind for kind in "vtr" if document.get(kind)]
    return str(document[kind][0]["ci"])


def test_an_answer_has_the_handles_and_so_has_its_repetition(
    appliance: Any, vaccinations: dict[str, bytes]
) -> None:
    good = list(vaccinations.values())
    payloads = [good[0], b"no certificate", good[1]]
    with appliance.client() as client:
        request_id = uuid.uuid4()
        answers = [
            client.sign_batch(DCC, "HCERT", payloads, request_id=request_id, revocation=True)
            for _ in range(2)
        ]
        plain = client.sign_batch(DCC, "HCERT", payloads)
        with pytest.raises(InvalidRequestError, match="is for HCERT only"):
            client.sign_batch(DOCUMENTS, "CMS", [b"x"], revocation=True)
    again = [[(result.signature, result.revocation) for result in each] for each in answers]
    assert again[0] == again[1]
    assert [result.revocation for result in plain] == [None] * 3
    first, bad, last = answers[0]
    assert bad.revocation is None
    for result, payload in ((first, payloads[0]), (last, payloads[2])):
        assert result.revocation is not None
        uvci = uvci_of(payload)
        assert result.revocation.uvci == first_half(uvci.encode())
        assert result.revocation.country_uvci == first_half(("VN" + uvci).encode())
        assert len(result.revocation.signature) == 16
    assert first.revocation != last.revocation


def build(appliance: Any, out: Path, lines: str, *words: object) -> Done:
    file = out.with_suffix(".txt")
    file.write_text(lines)
    return signer(
        *("revocations", "build", "--client", appliance.client_file(), "--key", DOCUMENTS),
        *("--country", "VN", "--expires", "2031-01-01T00:00:00Z", "--out", out, *words, file),
    )


def opened(appliance: Any, path: Path) -> dict[str, Any]:
    """OpenSSL verifies a list and takes it out of its signature."""
    command = ["openssl", "cms", "-verify", "-cades", "-binary", "-inform", "DER", "-in", str(path)]
    command += ["-CAfile", str(appliance.dir / "pki" / "dcc-ca.pem")]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == path.with_suffix(".json").read_bytes()
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def test_lists_are_signed_and_each_certificate_is_in_one_once(
    appliance: Any, tmp_path: Path
) -> None:
    uvcis = [f"{COUNTED}:{number}" for number in range(1500)]
    lines = "\n".join([*uvcis, uvcis[0], "", uvcis[1]]) + "\n"
    done = build(appliance, tmp_path / "lists", lines, "--of", DCC, "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert [each["handles"] for each in made] == [1000, 500]
    lists = [opened(appliance, Path(each["file"])) for each in made]
    with appliance.client() as client:
        primary = client.get_key(DCC).primary
    assert primary is not None
    for each in lists:
        assert (each["country"], each["hashType"]) == ("VN", "UCI")
        assert each["expires"] == "2031-01-01T00:00:00Z"
        assert base64.b64decode(each["kid"]) == primary.kid
    found = [base64.b64decode(entry["hash"]) for each in lists for entry in each["entries"]]
    assert sorted(found) == sorted(first_half(uvci.encode()) for uvci in uvcis)


@pytest.mark.parametrize("kind", ["uci", "countrycodeuci", "signature"])
def test_a_list_of_texts_has_the_handles_of_the_answers(
    appliance: Any, vaccinations: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    with appliance.client() as client:
        results = client.sign_batch(DCC, "HCERT", list(vaccinations.values())[:3], revocation=True)
    lines = "\n".join(result.signature.decode() for result in results)
    done = build(appliance, tmp_path / "lists", lines, "--handle", kind)
    assert done.code == 0, done.err
    content = opened(appliance, tmp_path / "lists" / "batch-0001.p7m")
    member = {"uci": "uvci", "countrycodeuci": "country_uvci", "signature": "signature"}[kind]
    expected = {getattr(result.revocation, member) for result in results}
    assert {base64.b64decode(each["hash"]) for each in content["entries"]} == expected
    assert content["kid"] == "UNKNOWN_KID"


@pytest.mark.parametrize(
    ("lines", "words", "said"),
    [
        ("\n", (), "there is no certificate to revoke"),
        ("URN:1\nURN:2\n", ("--handle", "signature"), "line 1: a handle of the kind SIGNATURE"),
        ("URN:1\nHC1:XYZ\n", (), "line 2: it is not the text of an HCERT"),
    ],
)
def test_what_cannot_be_revoked_is_named(
    appliance: Any, tmp_path: Path, lines: str, words: tuple[str, ...], said: str
) -> None:
    done = build(appliance, tmp_path / "lists", lines, *words)
    assert done.code == 1
    assert said in done.err
    assert not (tmp_path / "lists").exists()


def test_lists_that_are_not_signed_leave_no_folder(appliance: Any, tmp_path: Path) -> None:
    out = tmp_path / "lists"
    for key in ("facilities/moh/keys/absent", "facilities/01-001/keys/records"):
        done = build(appliance, out, "URN:1\n", "--key", key)
        assert (done.code, out.exists()) == (1, False), done.err
    assert "is a new folder" not in done.err


def test_a_folder_with_files_is_left_alone(appliance: Any, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "mine").write_text("x")
    done = build(appliance, tmp_path / "lists", "URN:1\n")
    assert done.code == 1
    assert "has files: name a new or an empty folder" in done.err


def test_sign_prints_the_handles(
    appliance: Any, vaccinations: dict[str, bytes], tmp_path: Path
) -> None:
    payload = next(iter(vaccinations.values()))
    file = tmp_path / "certificate"
    file.write_bytes(payload)
    words = ("--client", appliance.client_file(), "--key", DCC, "--format", "HCERT")
    done = signer("sign", *words, "--json", "--revocation", file)
    assert done.code == 0, done.err
    handles = json.loads(done.out)["revocation"]
    assert base64.b64decode(handles["uvci"]) == first_half(uvci_of(payload).encode())
    assert signer("sign", *words, "--revocation", file).code == 2


class Verifier:
    """A verifier with the certificates of both keys, and what it is given to verify."""

    def __init__(self, appliance: Any, folder: Path) -> None:
        self.folder = folder
        self.keys = [appliance.key(name)["certificate"] for name in ("moh/dcc", "moh/documents")]

    def verify(self, *words: object) -> Done:
        keys = [word for key in self.keys for word in ("--keys", key)]
        return signer("verify", *keys, *words, *sorted(self.folder.glob("*.hc1")))


@pytest.mark.parametrize("kind", ["uci", "countrycodeuci", "signature"])
def test_a_verifier_refuses_what_is_in_a_signed_list(
    appliance: Any, vaccinations: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    payloads = list({uvci_of(payload): payload for payload in vaccinations.values()}.values())
    with appliance.client() as client:
        results = client.sign_batch(DCC, "HCERT", payloads[:2])
    for index, result in enumerate(results):
        (tmp_path / f"{index}.hc1").write_bytes(result.signature)
    lists = tmp_path / "lists"
    revoked = results[1].signature.decode() + "\n"
    done = build(appliance, lists, revoked, "--handle", kind, "--of", DCC)
    assert done.code == 0, done.err
    verifier = Verifier(appliance, tmp_path)
    assert verifier.verify().code == 0
    for path in (lists, lists / "batch-0001.p7m"):
        done = verifier.verify("--revocations", path)
        assert done.code == 1
        first, second = done.out.splitlines()
        assert ": valid HCERT" in first
        assert f"1.hc1: NOT VALID: it is genuine, but revoked: {lists}/batch-0001.p7m" in second
        assert ", signed at 20" in second
    other = tmp_path / "other"
    assert build(appliance, other, revoked, "--handle", kind, "--of", f"{DCC}-rsa").code == 0
    assert verifier.verify("--revocations", other).code == 0, "a list for another key"


def test_a_list_that_is_not_accepted_stops_the_verifier(
    appliance: Any, vaccinations: dict[str, bytes], tmp_path: Path
) -> None:
    with appliance.client() as client:
        [result] = client.sign_batch(DCC, "HCERT", list(vaccinations.values())[:1])
    (tmp_path / "0.hc1").write_bytes(result.signature)
    assert build(appliance, tmp_path / "lists", "URN:1\n").code == 0
    path = tmp_path / "lists" / "batch-0001.p7m"
    good, verifier = path.read_bytes(), Verifier(appliance, tmp_path)
    done = verifier.verify("--revocations", path, "--at", "2031-01-01T00:00:00Z")
    assert (done.code, done.out) == (1, "")
    assert f"the list {path} is not accepted: it ended at 2031-01-01T00:00:00Z" in done.err
    for content, said in (
        (good.replace(b"2031-01-01", b"2041-01-01"), "its content was changed"),
        (good[:-1] + bytes([good[-1] ^ 1]), "its signature is wrong"),
        (path.with_suffix(".json").read_bytes(), "it is not a CMS signature"),
        (b"", "it is not a CMS signature"),
    ):
        path.write_bytes(content)
        done = verifier.verify("--revocations", path)
        assert (done.code, done.out) == (1, "")
        assert f"the list {path} is not accepted: {said}" in done.err
    path.write_bytes(good)
    verifier.keys.pop()
    done = verifier.verify("--revocations", path)
    assert (done.code, "no key that is trusted has its certificate" in done.err) == (1, True)
    path.unlink()
    done = verifier.verify("--revocations", path.parent)
    assert (done.code, "has no lists" in done.err) == (1, True)
