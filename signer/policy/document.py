"""The policy as it is written: the shape of each part, without what lies around it.

Each part is checked by itself here; how parts fit together is checked by
``compile``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from signer.errors import Violation
from signer.model import Algorithm, ContentRules, Format
from signer.policy import values
from signer.policy.windows import Hours, weekly

MAX_BATCH_ITEMS = 4096  # of any batch: the API's own limit
MAX_VALIDITY_DAYS = 365  # of an HCERT: 12 months

Names = Annotated[frozenset[str], PlainValidator(values.names)]
Principals = Annotated[frozenset[str], PlainValidator(values.principals)]
Formats = Annotated[frozenset[Format], PlainValidator(values.members(Format))]
Algorithms = Annotated[frozenset[Algorithm], PlainValidator(values.members(Algorithm))]
Instant = Annotated[float, PlainValidator(values.instant)]
Time = Annotated[int, PlainValidator(values.time_of_day)]


class Part(BaseModel):
    """A part of a document: exact types, no keys but these, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Opening(Part):
    """One line of opening hours: days from Monday (0), seconds of the day."""

    days: Annotated[tuple[int, ...], PlainValidator(values.days)]
    start: Time = Field(alias="from")
    end: Time = Field(alias="to")

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if self.start >= self.end:
            raise ValueError("from is not before to; write a night as two openings")
        return self


class OpeningHours(Part):
    """When signatures may be made."""

    time_zone: Annotated[ZoneInfo, PlainValidator(values.time_zone)]
    open: list[Opening] = Field(min_length=1)

    def hours(self) -> Hours:
        """Returns the plan of a week."""
        return weekly(self.time_zone, ((line.days, line.start, line.end) for line in self.open))


class Hcert(Part):
    """Claims of the HCERTs that are made; a profile states both."""

    issuer: str | None = Field(None, pattern=r"^[A-Z]{2}$")
    validity_days: int | None = Field(None, ge=1, le=MAX_VALIDITY_DAYS)


class Content(Part):
    """What payloads must be; the meaning stands at model.ContentRules."""

    countries: Names | None = None
    issuers: Names | None = None
    certificate_types: (
        Annotated[frozenset[str], PlainValidator(values.certificate_types)] | None
    ) = None
    identifier_prefix: str | None = Field(None, min_length=1)
    future_dates: bool | None = None
    required_members: Names | None = None

    def rules(self) -> ContentRules:
        """Returns these rules by themselves."""
        nothing: frozenset[str] = frozenset()
        return ContentRules(
            countries=self.countries or nothing,
            issuers=self.issuers or nothing,
            certificate_types=self.certificate_types or nothing,
            identifier_prefix=self.identifier_prefix,
            future_dates=self.future_dates is not False,
            required_members=self.required_members or nothing,
        )


class Rules(Part):
    """What a profile, a facility and a key may state. None: not stated."""

    formats: Formats | None = None
    algorithms: Algorithms | None = None
    max_batch_items: int | None = Field(None, ge=1, le=MAX_BATCH_ITEMS)
    quotas: Annotated[tuple[values.Quota, ...], PlainValidator(values.quotas)] | None = None
    hours: OpeningHours | None = None
    valid_from: Instant | None = None
    valid_until: Instant | None = None
    delegation: bool | None = None
    priority: Literal["high", "normal", "low"] | None = None
    check_every: int | None = Field(None, ge=1, le=1_000_000)
    hcert: Hcert | None = None
    content: Content | None = None


class Profile(Rules):
    """Rules that facilities share. What they allow is stated, never assumed."""

    formats: Formats
    algorithms: Algorithms
    max_batch_items: int = Field(ge=1, le=MAX_BATCH_ITEMS)
    blind: Formats | None = None


class FacilityRules(Rules):
    """A facility: who it is, its clients, and how it narrows its profile."""

    profile: str
    group: str | None = None
    clients: Principals = frozenset()
    keys: dict[str, Rules] = Field(default_factory=dict)


class GroupRules(Part):
    """A province; its clients may sign for the facilities that delegate to it."""

    name: str = Field(min_length=1, max_length=200)
    clients: Principals = frozenset()


class StaffRules(Part):
    """Principals that are no facility's client. Officers are not named here: an operation does."""

    auditor: Principals = frozenset()
    operator: Principals = frozenset()


def dotted(path: str, parts: Sequence[str | int]) -> str:
    """Returns a dotted path: ``open`` and 0 below ``hours`` give ``hours.open[0]``."""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def problems_of(error: ValidationError, path: str) -> list[Violation]:
    """Returns what is wrong with a part that stands at ``path``, in our words."""
    return [
        Violation(
            dotted(path, [part for part in found["loc"] if part != "[key]"]),
            _WORDS.get(found["type"]) or found["msg"].removeprefix("Value error, "),
        )
        for found in error.errors(include_url=False)
    ]


_WORDS = {
    "extra_forbidden": "is not known here; look for a typing mistake",
    "missing": "is missing",
    "string_type": "should be text: put it in quotes",
    "model_type": "should be a mapping of names to values",
    "dict_type": "should be a mapping of names to values",
    "list_type": "should be a list",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number, without quotes",
}
