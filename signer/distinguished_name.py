"""Distinguished names as people write them (RFC 4514), with the bounds of X.520. Pure."""

import re
import warnings
from collections.abc import Iterator

from cryptography import x509
from cryptography.x509.oid import NameOID

_TYPES = {  # RFC 4514 section 3, and the most characters that X.520 allows (RFC 5280, appendix A)
    "CN": (NameOID.COMMON_NAME, 64),
    "O": (NameOID.ORGANIZATION_NAME, 64),
    "OU": (NameOID.ORGANIZATIONAL_UNIT_NAME, 64),
    "L": (NameOID.LOCALITY_NAME, 128),
    "ST": (NameOID.STATE_OR_PROVINCE_NAME, 128),
    "STREET": (NameOID.STREET_ADDRESS, 128),
    "C": (NameOID.COUNTRY_NAME, 2),
    "DC": (NameOID.DOMAIN_COMPONENT, 128),
    "UID": (NameOID.USER_ID, 256),
}
_OTHERS_AT_MOST = 256
_OID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")
_COUNTRY = re.compile(r"[A-Za-z]{2}")
_TOKEN = re.compile(r"((?:\\[0-9A-Fa-f]{2})+)|\\(.)|([^\\])", re.DOTALL)
_TO_ESCAPE = frozenset('";<>')


_Part = list[tuple[str, bool]]
"""Characters, and whether each was escaped."""


def parse_name(text: str) -> x509.Name:
    """Reads a name like ``CN=DCC 1,O=Ministry,C=VN``; raises ValueError, which names the part.

    The first part is the most specific one, as in RFC 4514; names of attributes are in any case,
    and blanks around commas and equals signs do not count. Lengths are characters, as in X.520,
    not bytes of UTF-8, which a name in Vietnamese has more of.
    """
    parts = [
        x509.RelativeDistinguishedName([_attribute(one) for one in _split(part, "+")])
        for part in _split(text, ",")
    ]
    return x509.Name(reversed(parts))


def _split(text: str | _Part, separator: str) -> Iterator[_Part]:
    part: _Part = []
    for character in _characters(text) if isinstance(text, str) else text:
        if character == (separator, False):
            yield part
            part = []
        else:
            part.append(character)
    yield part


def _characters(text: str) -> _Part:
    found: _Part = []
    for match in _TOKEN.finditer(text):
        octets, escaped, plain = match.groups()
        if octets is not None:
            try:
                decoded = bytes.fromhex(octets.replace("\\", "")).decode()
            except UnicodeDecodeError:
                raise ValueError(f"{octets} is not UTF-8") from None
            found += [(character, True) for character in decoded]
        else:
            found.append((escaped or plain, escaped is not None))
    if text.endswith("\\") and found[-1:] != [("\\", True)]:
        raise ValueError("a backslash at its end escapes nothing")
    return found


def _attribute(part: _Part) -> x509.NameAttribute[str]:
    part = _without_blanks(part)
    shown = "".join(character for character, _ in part)
    equals = next((n for n, character in enumerate(part) if character == ("=", False)), None)
    if equals is None:
        raise ValueError(f"'{shown}' has no equals sign: write for instance CN={shown or '...'}")
    name = "".join(character for character, _ in part[:equals]).strip().upper()
    value = _without_blanks(part[equals + 1 :])
    wrong = next((c for c, escaped in value if not escaped and c in _TO_ESCAPE), None)
    if wrong or value[:1] == [("#", False)]:
        raise ValueError(f"write \\{wrong or '#'} for the character {wrong or '#'} in '{shown}'")
    return _checked(name, "".join(character for character, _ in value))


def _without_blanks(part: _Part) -> _Part:
    first, last = 0, len(part)
    while first < last and part[first] == (" ", False):
        first += 1
    while last > first and part[last - 1] == (" ", False):
        last -= 1
    return part[first:last]


def _checked(name: str, value: str) -> x509.NameAttribute[str]:
    if name in _TYPES:
        oid, most = _TYPES[name]
    elif _OID.fullmatch(name):
        oid, most = x509.ObjectIdentifier(name), _OTHERS_AT_MOST
    else:
        raise ValueError(f"{name or 'an attribute'} is not one of {', '.join(_TYPES)}, or an OID")
    if not value:
        raise ValueError(f"{name} is empty")
    if oid == NameOID.COUNTRY_NAME and not _COUNTRY.fullmatch(value):
        raise ValueError(f"C={value} must be two letters, as in C=VN (ISO 3166)")
    if len(value) > most:
        raise ValueError(f"{name} has {len(value)} characters, at most {most} are allowed")
    # The library counts bytes: with its check it refuses, without it warns (``ignore_lengths``).
    return x509.NameAttribute(oid, value, _validate=False)


def ignore_lengths() -> None:
    """Silences the library, which warns of each long name that it reads or makes, for a process."""
    warnings.filterwarnings("ignore", "Attribute's length must be")
