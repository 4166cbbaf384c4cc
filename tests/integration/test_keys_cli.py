"""Keys as the commands and the HSM make them, on a real token."""

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer.algorithms import PROPERTIES, Algorithm
from signer.config.models import Config, load_config
from signer.errors import OperatorError
from signer.hsm.front.admin import open_admin
from signer.keys.lifecycle import NewKey, cka_id, create_key
from signer.keys.registry import Registry
from signer.model import KeyName
from tests.appliances import Appliance


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    appliance = Appliance(tmp_path_factory.mktemp("keys") / "appliance")
    appliance.init()
    return load_config(appliance.dir / "signer.yaml")


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_key_is_made_in_the_hsm_and_signs(config: Config, algorithm: Algorithm) -> None:
    rsa = algorithm in (Algorithm.RS256, Algorithm.PS256)
    new = NewKey(KeyName("new", algorithm.lower()), algorithm, 2048 if rsa else 0)
    digest = hashlib.new(PROPERTIES[algorithm].hash_name or "sha256", b"message").digest()
    with (
        Registry.open(config.registry) as registry,
        open_admin(config.tokens[0], config.state) as admin,
    ):
        version = create_key(registry, admin, new, 1.0)
        assert registry.versions(new.name) == [version]
        [signature] = admin.sign(algorithm, version.cka_id, version.spki, [digest])
    check(algorithm, version.spki, signature, digest)


def check(algorithm: Algorithm, spki: bytes, signature: bytes, data: bytes) -> None:
    key: Any = load_der_public_key(spki)
    if algorithm is Algorithm.EDDSA:
        key.verify(signature, data)
    elif algorithm in (Algorithm.ES256, Algorithm.ES384):
        half = len(signature) // 2
        r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
        hashed = hashes.SHA256() if half == 32 else hashes.SHA384()
        key.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(utils.Prehashed(hashed)))
    else:
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        pad = pss if algorithm is Algorithm.PS256 else padding.PKCS1v15()
        key.verify(signature, data, pad, utils.Prehashed(hashes.SHA256()))


def test_a_key_that_a_crash_left_on_the_token_is_found(config: Config) -> None:
    name = KeyName("crashed", "records")
    with (
        Registry.open(config.registry) as registry,
        open_admin(config.tokens[0], config.state) as admin,
    ):
        left = admin.generate(Algorithm.ES256, 0, cka_id(name, 1), f"{name}/versions/1")
        with pytest.raises(OperatorError, match=f"{name} was not created"):
            create_key(registry, admin, NewKey(name, Algorithm.EDDSA), 1.0)
        assert registry.versions(name) == []
        assert create_key(registry, admin, NewKey(name, Algorithm.ES256), 1.0).spki == left
