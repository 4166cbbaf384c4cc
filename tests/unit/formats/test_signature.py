from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from signer.formats import signature_length
from signer.model import Algorithm


@pytest.mark.parametrize("algorithm", Algorithm)
def test_length_is_that_of_real_signatures(
    keys: Mapping[Algorithm, Any], algorithm: Algorithm
) -> None:
    key = keys[algorithm]
    assert signature_length(key.version) == len(key.sign(b"message"))


def test_wrong_pin_is_our_bug(keys: Mapping[Algorithm, Any]) -> None:
    version = dataclasses.replace(keys[Algorithm.ES256].version, algorithm=Algorithm.PS256)
    with pytest.raises(TypeError, match="not RSA"):
        signature_length(version)
