import subprocess
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.keys.csr import make_request
from signer.keys.lifecycle import NewKey, create_key
from signer.keys.registry import Registry
from signer.model import KeyName, KeyVersion

SUBJECT = "CN=DCC signer 1,O=Ministry of Health,C=VN"


@pytest.fixture
def url(sqlite_url: str) -> str:
    return sqlite_url  # whatever holds the keys: these tests are of what is made of them


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_request_is_signed_by_the_key(
    registry: Registry, token: Any, now: float, algorithm: Algorithm
) -> None:
    bits = 2048 if algorithm in (Algorithm.RS256, Algorithm.PS256) else 0
    version = create_key(registry, token, NewKey(KeyName("moh", "k"), algorithm, bits), now)
    pem = make_request(token, version, SUBJECT)
    request = x509.load_pem_x509_csr(pem)
    assert request.is_signature_valid
    command = ["openssl", "req", "-verify", "-noout"]
    subprocess.run(command, input=pem, check=True, capture_output=True)
    assert request.subject.rfc4514_string() == SUBJECT
    assert (
        request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        == version.spki
    )
    pss = isinstance(request.signature_algorithm_parameters, padding.PSS)
    assert pss == (algorithm is Algorithm.PS256)


def test_a_token_that_signs_with_another_key_is_noticed(
    token: Any, version: KeyVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign, another = token.sign, token.generate(version.algorithm, 0, b"another", "another")
    wrong = lambda algorithm, _id, _spki, inputs, _: sign(algorithm, b"another", another, inputs)  # noqa: E731
    monkeypatch.setattr(token, "sign", wrong)
    with pytest.raises(OperatorError, match="registry pins"):
        make_request(token, version, SUBJECT)
