"""The page that a person gets on paper, in Vietnamese and English; all in one HTML file.

It shows what the certificate says, read back from the text of its QR code.
"""

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from signer.formats.finished import Claims, claims_of, finished
from signer.formats.payloads import MessageError
from signer.text import utc

SIZES = ("a4", "a5")

_LABELS = {
    "name": ("Họ và tên", "Name"),
    "standard": ("Theo hộ chiếu", "As in passports"),
    "born": ("Ngày sinh", "Date of birth"),
    "target": ("Bệnh", "Disease"),
    "vaccine": ("Loại vắc xin", "Vaccine type"),
    "product": ("Tên vắc xin", "Vaccine product"),
    "manufacturer": ("Nhà sản xuất", "Manufacturer"),
    "dose": ("Mũi tiêm", "Dose"),
    "date": ("Ngày tiêm", "Date of vaccination"),
    "country": ("Quốc gia", "Country"),
    "issuer": ("Cơ quan cấp", "Issued by"),
    "until": ("Có giá trị đến", "Valid until"),
    "uvci": ("Mã chứng nhận", "Certificate identifier"),
}

_CODES = {
    "840539006": "COVID-19",
    "1119349007": "SARS-CoV-2 mRNA",
    "1119305005": "SARS-CoV-2 antigen",
    "29061000087103": "SARS-CoV-2 recombinant adenoviral vector",
    "J07BX03": "COVID-19",
    "EU/1/20/1507": "Spikevax (Moderna)",
    "EU/1/20/1525": "Jcovden (Janssen)",
    "EU/1/20/1528": "Comirnaty (Pfizer/BioNTech)",
    "EU/1/21/1529": "Vaxzevria (AstraZeneca)",
    "BBIBP-CorV": "Vero Cell (Sinopharm)",
    "ORG-100001417": "Janssen-Cilag International",
    "ORG-100001699": "AstraZeneca AB",
    "ORG-100020693": "China Sinopharm International Corp., Beijing",
    "ORG-100030215": "BioNTech Manufacturing GmbH",
    "ORG-100031184": "Moderna Biotech Spain S.L.",
}
"""What people read in place of the codes of value sets; of other codes they read the code."""

_STYLE = """\
@page { size: %s; margin: 12mm; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 186mm; color: #111; background: #fff;
  font: 10.5pt/1.35 "Noto Sans", "DejaVu Sans", Arial, sans-serif; }
h1 { margin: 0; font-size: 14pt; color: #8f1d21; text-transform: uppercase; }
header { padding-bottom: 3mm; border-bottom: 0.6mm solid #8f1d21; }
header p { margin: 0; font-size: 11pt; }
svg { display: block; width: %dmm; height: %dmm; margin: 4mm auto; shape-rendering: crispEdges; }
table { width: 100%%; border-collapse: collapse; }
th, td { padding: 1.1mm 0; text-align: left; vertical-align: top; border-bottom: 0.2mm solid #ccc; }
th { width: 38%%; padding-right: 4mm; font-weight: 400; }
td { font-weight: 600; overflow-wrap: anywhere; }
i { display: block; font-size: 8.5pt; color: #444; }
footer { margin-top: 4mm; font-size: 8.5pt; color: #444; }
"""

_PAGE = """\
<!DOCTYPE html>
<html lang="vi">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Giấy chứng nhận tiêm chủng</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>Giấy chứng nhận tiêm chủng</h1>
<p lang="en">Vaccination certificate</p>
</header>
{code}
<table>
{rows}
</table>
<footer>
<p>Mã QR được ký số. Chỉ mã QR chứng minh nội dung của trang này.
<span lang="en">The QR code is signed. Only the QR code proves what this page says.</span></p>
</footer>
</body>
</html>
"""

_CODE_MM = {"a4": 95, "a5": 68}


def page(text: str, svg: str, size: str) -> str:
    """Returns the page for the text of a certificate and its QR code; ``size`` is one of SIZES.

    Raises MessageError for what is not the text of a vaccination certificate.
    """
    message = finished(text.encode())
    if message is None:
        raise MessageError("it is not the text of a certificate")
    rows = "\n".join(
        f'<tr><th scope="row">{_LABELS[name][0]}<i lang="en">{_LABELS[name][1]}</i></th>'
        f"<td>{escape(value)}</td></tr>"
        for name, value in _values(claims_of(message)).items()
        if value
    )
    style = _STYLE % (size.upper(), _CODE_MM[size], _CODE_MM[size])
    return _PAGE.format(style=style, code=svg, rows=rows)


def _values(claims: Claims) -> dict[str, str]:
    document: Mapping[str, Any] = claims.dcc
    names, [entry] = document["nam"], document["v"]
    return {
        "name": " ".join(filter(None, (names.get("fn"), names.get("gn")))),
        "standard": " ".join(filter(None, (names.get("fnt"), names.get("gnt")))),
        "born": _date(document["dob"]),
        "target": _said(entry["tg"]),
        "vaccine": _said(entry["vp"]),
        "product": _said(entry["mp"]),
        "manufacturer": _said(entry["ma"]),
        "dose": f"{entry['dn']}/{entry['sd']}",
        "date": _date(entry["dt"]),
        "country": entry["co"],
        "issuer": entry["is"],
        "until": _date(utc(claims.expires)),
        "uvci": entry["ci"],
    }


def _said(code: str) -> str:
    return _CODES.get(code, code)


def _date(text: str) -> str:
    """Returns a date as Vietnamese write it: 11/06/2021, 06/2021 or 2021; of a time its day."""
    match = re.match(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?", text)
    return "/".join(filter(None, (match[3], match[2], match[1]))) if match else ""
