"""What ``signer verify`` prints, whatever a genuine message has in it."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import cbor2
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from signer.cli.main import cli
from signer.errors import OperatorError
from signer.formats import shc
from signer.formats.hcert import text as hcert_text
from signer.x509 import public_key_pem, spki_of
from tests.unit.cli.test_audit_in_hand import b64url, sign

KEY = ec.generate_private_key(ec.SECP256R1())
LAST = 253_402_300_799  # 9999-12-31T23:59:59Z


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("verify")
    (made / "key.pem").write_text(public_key_pem(spki_of(KEY.public_key())))
    return made


def verify(folder: Path, message: bytes, *words: str) -> Result:
    (folder / "message").write_bytes(message)
    return CliRunner().invoke(
        cli, ["verify", "--keys", str(folder / "key.pem"), *words, str(folder / "message")]
    )


def hcert(issued: int, expires: int, dcc: dict[str, Any]) -> bytes:
    payload = cbor2.dumps({1: "VN", 4: expires, 6: issued, -260: {1: dcc}})
    protected = cbor2.dumps({1: -7})
    made = sign(KEY, cbor2.dumps(["Signature1", protected, b"", payload]))
    return hcert_text(cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, made])))


TIMES = st.one_of(st.integers(-(1 << 64), (1 << 64) - 1), st.integers(0, LAST + 10))


def test_any_time_is_printed_or_refused(folder: Path) -> None:
    @given(TIMES, TIMES)
    def printed(issued: int, expires: int) -> None:
        made = hcert(issued, expires, {"v": [{}]})
        for words in ((), ("--json",)):
            done = verify(folder, made, *words)
            assert done.exit_code in {0, 1}
            assert done.stdout.count("\n") == 1
            assert done.exception is None or isinstance(done.exception, OperatorError)

    printed()


def test_the_last_time_is_printed(folder: Path) -> None:
    done = verify(folder, hcert(0, LAST, {"v": [{}]}))
    assert done.exit_code == 0, done.output
    assert "1970-01-01T00:00:00Z to 9999-12-31T23:59:59Z" in done.stdout
    beyond = verify(folder, hcert(0, LAST + 1, {"v": [{}]}))
    assert "NOT VALID: its `exp` is not a time from 1970 to 9999" in beyond.stdout


def test_values_that_json_does_not_have_are_printed(folder: Path) -> None:
    dcc = {"v": [{"a": cbor2.undefined, "b": b"\xff", "c": cbor2.CBORSimpleValue(99)}]}
    done = verify(folder, hcert(0, LAST, dcc), "--json")
    assert done.exit_code == 0, done.output
    [entry] = json.loads(done.stdout)["dcc"]["v"]
    assert entry["b"] == "/w=="


def test_a_card_is_accepted_as_such_and_its_payload_is_shown_inflated(folder: Path) -> None:
    payload = b'{"iss":"https://cards.example","nbf":1,"vc":{}}'
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(payload) + packer.flush()
    signed = b64url(b'{"alg":"ES256","zip":"DEF"}') + b"." + b64url(packed)
    card = shc.text(signed + b"." + b64url(sign(KEY, signed)))
    done = verify(folder, card, "--format", "SHC")
    assert done.exit_code == 0, done.output
    assert ": valid SHC, ES256, key " in done.stdout
    shown = json.loads(verify(folder, card + b"\n", "--lines", "--json").stdout)
    assert (shown["format"], base64.b64decode(shown["payload"])) == ("SHC", payload)
    assert verify(folder, card, "--format", "JWS").exit_code == 1
