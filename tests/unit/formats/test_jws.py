import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from signer.algorithms import Algorithm
from signer.errors import Reason
from signer.format_terms import ContentRules, FormatContext
from signer.formats import FORMATS, jws
from signer.formats.payloads import json_object
from signer.model import Format

Maker = Callable[..., FormatContext]
JWS = FORMATS[Format.JWS]


def unpadded(part: str) -> bytes:
    assert "=" not in part
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars="-_", validate=True)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_round_trip(context: Maker, keys: Mapping[Algorithm, Any], algorithm: Algorithm) -> None:
    key, ctx = keys[algorithm], context(algorithm)
    # White space, escapes and order are the caller's: the bytes are carried unchanged.
    payload = '{ "b" : 1.50,\r\n"a":"\\u00e9 é ~~~???>>>" }'.encode()
    prepared = JWS.prepare([payload], ctx)
    (output,) = JWS.finish(prepared, [key.sign(prepared.to_sign[0])], ctx)

    header, body, signature = output.decode("ascii").split(".")
    assert json.loads(unpadded(header)) == {"alg": algorithm, "kid": key.version.thumbprint}
    assert unpadded(body) == payload
    key.verify(unpadded(signature), f"{header}.{body}".encode())


def test_signing_input_of_rfc_7515(context: Maker) -> None:
    # Appendix A.2.1: the payload part; our header differs, for it has a kid.
    payload = b'{"iss":"joe",\r\n "exp":1300819380,\r\n "http://example.com/is_root":true}'
    (signed,) = JWS.prepare([payload], context()).to_sign
    assert signed.split(b".")[1] == (
        b"eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFt"
        b"cGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
    )


def test_required_members(context: Maker) -> None:
    rules = ContentRules(required_members=frozenset({"patient", "lot"}))
    payloads = [b'{"patient":1,"lot":null,"x":1}', b'{"patient":1}', b'{"x":{"patient":1,"lot":1}}']
    prepared = JWS.prepare(payloads, context(content=rules))
    assert set(prepared.failures) == {1, 2}
    assert prepared.failures[1].reason is Reason.CONTENT_DENIED
    assert prepared.failures[1].message == "content rule required_members: lot is missing"
    assert prepared.failures[2].message == "content rule required_members: lot is missing"


def test_message_about_a_long_member_name_is_bounded(context: Maker) -> None:
    rules = ContentRules(required_members=frozenset({"x" * 5000}))
    prepared = JWS.prepare([b"{}"], context(content=rules))
    assert len(prepared.failures[0].message) <= 200


def test_rules_of_hcert_do_not_apply(context: Maker) -> None:
    rules = ContentRules(countries=frozenset({"VN"}), future_dates=False)
    assert not JWS.prepare([b"{}"], context(content=rules)).failures


def test_payload_beyond_the_limit_fails_alone_before_it_is_read(
    context: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filled(size: int) -> bytes:
        return b'{"a":"' + b"x" * (size - 8) + b'"}'

    lengths = list[int]()

    def counted(payload: bytes) -> Any:
        lengths.append(len(payload))
        return json_object(payload)

    monkeypatch.setattr(jws, "json_object", counted)
    payloads = [filled(jws.MAX_BYTES), filled(jws.MAX_BYTES + 1), b"[" * (2 << 20), b"{}"]
    prepared = JWS.prepare(payloads, context())
    assert lengths == [jws.MAX_BYTES, 2]
    assert set(prepared.failures) == {1, 2}
    assert prepared.failures[1].reason is Reason.PAYLOAD_INVALID
    assert prepared.failures[1].message == "payload is longer than 262144 bytes"
