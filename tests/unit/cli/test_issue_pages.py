"""Pages of `signer issue`: all in one file, and no text of a person is markup."""

import stat
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cbor2
import pytest

from signer.cli.issue.outputs import PAGE, PNG, Drawn, draw
from signer.cli.issue.outputs import SVG as SVG_FILE
from signer.cli.issue.pages import SIZES, page
from signer.errors import OperatorError
from signer.formats import base45
from signer.formats.payloads import MessageError

SVG = '<svg viewBox="0 0 9 9"><path d="M1 1"/></svg>'


class Reader(HTMLParser):
    """What is in a page: tags with their attributes, and the cells of its table."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def text_of(**members: Any) -> str:
    """The text of a certificate as an appliance makes it, with a signature that is none."""
    entry: dict[str, Any] = {
        "tg": "840539006",
        "vp": "J07BX03",
        "mp": "EU/1/21/1529",
        "ma": "ORG-100001699",
    }
    entry |= {"dn": 1, "sd": 2, "dt": "2021-08-03", "co": "VN", "is": "Bộ Y tế", "ci": "U:1"}
    names = {"fn": "Nguyễn", "fnt": "NGUYEN", "gn": "Thị Mẫu", "gnt": "THI<MAU"}
    document = {"ver": "1.3.0", "nam": names, "dob": "1985-04-12", "v": [entry]} | members
    claims = cbor2.dumps({1: "VN", 4: 1_900_000_000, 6: 1_800_000_000, -260: {1: document}})
    message = cbor2.dumps(cbor2.CBORTag(18, [cbor2.dumps({1: -7}), {}, claims, bytes(64)]))
    return "HC1:" + base45.encode(zlib.compress(message)).decode()


@pytest.mark.parametrize("size", SIZES)
def test_a_page_shows_what_the_certificate_says(size: str) -> None:
    made = page(text_of(), SVG, size)
    assert read(made).cells == [
        "Nguyễn Thị Mẫu",
        "NGUYEN THI<MAU",
        "12/04/1985",
        "COVID-19",
        "COVID-19",
        "Vaxzevria (AstraZeneca)",
        "AstraZeneca AB",
        "1/2",
        "03/08/2021",
        "VN",
        "Bộ Y tế",
        "17/03/2030",
        "U:1",
    ]
    assert SVG in made
    assert f"size: {size.upper()};" in made
    for words in ("Họ và tên", "Date of birth", "Mũi tiêm", "Vaccine product"):
        assert words in made


@pytest.mark.parametrize(("born", "shown"), [("1950", "1950"), ("1972-11", "11/1972")])
def test_birthdays_that_are_known_in_part(born: str, shown: str) -> None:
    assert read(page(text_of(dob=born), SVG, "a4")).cells[2] == shown


def test_one_name_and_no_birthday_leave_no_empty_rows() -> None:
    cells = read(page(text_of(nam={"fn": "Ánh", "fnt": "ANH"}, dob=""), SVG, "a4")).cells
    assert cells[:3] == ["Ánh", "ANH", "COVID-19"]


def test_texts_of_people_are_no_markup() -> None:
    evil = "<script src=//x>{style}%s</script><img onerror='x'>\"&amp;"
    text = text_of(nam={"fn": evil, "fnt": "X", "gn": "</td></table>"})
    reader = read(page(text, SVG, "a4"))
    assert reader.cells[0] == f"{evil} </td></table>"
    tags = {tag for tag, _ in reader.tags}
    assert not {"script", "img", "link", "iframe", "base", "form"} & tags


def test_a_page_loads_nothing() -> None:
    reader = read(page(text_of(), SVG, "a5"))
    for _, attributes in reader.tags:
        assert not {"src", "href", "action", "onload"} & attributes.keys()
    [policy] = [
        attributes["content"]
        for tag, attributes in reader.tags
        if tag == "meta" and "http-equiv" in attributes
    ]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_what_is_not_a_certificate_has_no_page() -> None:
    for text in ("HC1:X", "", "eyJh.e30.AA"):
        with pytest.raises(MessageError):
            page(text, SVG, "a4")


def test_what_is_drawn_is_private(tmp_path: Path) -> None:
    drawn = Drawn((PNG, SVG_FILE), "a4", "Q")
    draw(tmp_path, drawn, [("1", text_of(), drawn.kinds)])
    assert {path.name for path in tmp_path.iterdir()} == {"1.png", "1.svg", "1.html"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert (tmp_path / "1.html").read_text().count("<svg") == 1
    assert PAGE in drawn.kinds


def test_a_text_that_no_code_of_the_level_holds_is_refused(tmp_path: Path) -> None:
    long = "HC1:" + "A" * 1900
    with pytest.raises(OperatorError, match=r"1: no QR code of level H .* give a lower --qr-level"):
        draw(tmp_path, Drawn((PNG,), "", "H"), [("1", long, [PNG])])
    draw(tmp_path, Drawn((PNG,), "", "Q"), [("1", long, [PNG])])
