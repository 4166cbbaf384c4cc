import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.formats import base45

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"


def decode(text: str) -> bytes:
    """RFC 9285 section 4, read literally."""
    out = b""
    for start in range(0, len(text), 3):
        part = text[start : start + 3]
        number = sum(ALPHABET.index(c) * 45**i for i, c in enumerate(part))
        out += number.to_bytes(len(part) - 1, "big")
    return out


@pytest.mark.parametrize(
    ("data", "text"),
    [  # RFC 9285 sections 4.3 and 4.4
        (b"AB", b"BB8"),
        (b"Hello!!", b"%69 VD92EX0"),
        (b"base-45", b"UJCLQE7W581"),
        (b"ietf!", b"QED8WEX0"),
        (b"", b""),
        (b"\xff\xff", b"FGW"),
        (b"\xff", b"U5"),
        (b"\x00", b"00"),
    ],
)
def test_known_answers(data: bytes, text: bytes) -> None:
    assert base45.encode(data) == text


@given(st.binary(max_size=700))
def test_round_trip_and_length(data: bytes) -> None:
    text = base45.encode(data)
    assert decode(text.decode()) == data
    assert len(text) == base45.encoded_length(len(data))


def test_every_pair_of_bytes() -> None:
    data = b"".join(n.to_bytes(2, "big") for n in range(1 << 16))
    assert decode(base45.encode(data).decode()) == data


@given(st.lists(st.binary(max_size=40)))
def test_several_together_are_as_one_by_one(items: list[bytes]) -> None:
    texts = base45.encode_all(items)
    assert [decode(text.decode()) for text in texts] == items
    assert texts == [base45.encode(item) for item in items]
