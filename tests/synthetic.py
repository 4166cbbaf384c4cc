"""Synthetic vaccination records of people who do not exist; the same for the same seed.

Names have diacritics in both of their Unicode forms, some people have one name only, and of some
only the year or the month of birth is known.

    python -m tests.synthetic 10000 > records.csv
"""

import csv
import io
import json
import random
import sys
import unicodedata
from collections.abc import Iterable, Sequence

Person = dict[str, str]
FACILITIES = ("01-001", "01-002", "strict")
COLUMNS = (
    *("record", "facility", "surname", "forenames", "born"),
    *("vaccine", "product", "manufacturer", "dose", "doses", "date"),
)

_SURNAMES = (
    *("Nguyễn", "Trần", "Lê", "Phạm", "Hoàng", "Huỳnh", "Phan", "Vũ", "Võ", "Đặng", "Bùi", "Đỗ"),
    *("Hồ", "Ngô", "Dương", "Lý", "Tôn Nữ", "Quách", "Thạch"),
    *("O\u2019Brien", "Müller", "Dupont-Léger"),
)
_MIDDLE = ("Thị", "Văn", "Hữu", "Đức", "Minh", "Ngọc", "Thanh", "Xuân", "Quốc", "Kim", "Mỹ", "")
_FORENAMES = (
    *("Ánh", "Bình", "Châu", "Dũng", "Đạt", "Giang", "Hằng", "Hiếu", "Hương", "Khôi", "Lượng"),
    *("Nghĩa", "Nhung", "Phượng", "Quỳnh", "Sơn", "Thảo", "Thủy", "Trường", "Tuyết", "Uyên", "Ý"),
)
_ONE_WORD = ("Phương", "Điểu", "Y\u2019Blim", "H\u2019Hen", "Suharto")
_VACCINES = (
    ("1119349007", "EU/1/20/1528", "ORG-100030215"),
    ("1119349007", "EU/1/20/1507", "ORG-100031184"),
    ("J07BX03", "EU/1/21/1529", "ORG-100001699"),
    ("1119305005", "BBIBP-CorV", "ORG-100020693"),
)


def people(count: int, seed: int = 1, facilities: Sequence[str] = FACILITIES) -> list[Person]:
    """Returns records, each of another id."""
    chance = random.Random(seed)
    return [_person(number, chance, facilities) for number in range(1, count + 1)]


def _person(number: int, chance: random.Random, facilities: Sequence[str]) -> Person:
    surname, middle = chance.choice(_SURNAMES), chance.choice(_MIDDLE)
    forenames = f"{middle} {chance.choice(_FORENAMES)}".strip()
    if chance.random() < 0.03:
        surname, forenames = chance.choice([(chance.choice(_ONE_WORD), ""), ("", "Sukarno")])
    form = chance.choice(("NFC", "NFD"))
    vaccine, product, manufacturer = chance.choice(_VACCINES)
    doses = chance.choice((1, 2, 2, 2, 3))
    return {
        "record": f"2021-{number:06}",
        "facility": chance.choice(facilities),
        "surname": unicodedata.normalize(form, surname),  # type: ignore[arg-type]
        "forenames": unicodedata.normalize(form, forenames),  # type: ignore[arg-type]
        "born": _born(chance),
        "vaccine": vaccine,
        "product": product,
        "manufacturer": manufacturer,
        "dose": str(chance.randint(1, doses)),
        "doses": str(doses),
        "date": f"2021-{chance.randint(6, 12):02}-{chance.randint(1, 28):02}",
    }


def _born(chance: random.Random) -> str:
    year, month = chance.randint(1921, 2015), chance.randint(1, 12)
    kind = chance.random()
    if kind < 0.05:
        return f"{year}"
    if kind < 0.08:
        return f"{year}-{month:02}"
    return f"{year}-{month:02}-{chance.randint(1, 28):02}"


def as_csv(records: Iterable[Person], separator: str = ",") -> str:
    made = io.StringIO(newline="")
    writer = csv.DictWriter(made, COLUMNS, delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return made.getvalue()


def as_json_lines(records: Iterable[Person]) -> str:
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)


if __name__ == "__main__":
    sys.stdout.write(as_csv(people(int(sys.argv[1]))))
