"""The shape of each part of a policy document; ``compile`` checks how the parts fit together."""

from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, PlainValidator, model_validator

from signer.algorithms import Algorithm
from signer.format_terms import HcertClaim
from signer.model import MAX_BATCH_ITEMS, Format
from signer.policy import values
from signer.policy.windows import Hours, weekly
from signer.strict import StrictModel

MAX_VALIDITY_DAYS = 365  # of an HCERT: 12 months
MAX_LIFETIME = 10**15  # signatures of a key version

Names = Annotated[frozenset[str], PlainValidator(values.names)]
Principals = Annotated[frozenset[str], PlainValidator(values.principals)]
Formats = Annotated[frozenset[Format], PlainValidator(values.members(Format))]
Claims = Annotated[frozenset[HcertClaim], PlainValidator(values.members(HcertClaim))]
Algorithms = Annotated[frozenset[Algorithm], PlainValidator(values.members(Algorithm))]
Instant = Annotated[float, PlainValidator(values.instant)]
Time = Annotated[int, PlainValidator(values.time_of_day)]


class Opening(StrictModel):
    """One line of opening hours: days from Monday (0), seconds of the day."""

    days: Annotated[tuple[int, ...], PlainValidator(values.days)]
    start: Time = Field(alias="from")
    end: Time = Field(alias="to")

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if self.start >= self.end:
            raise ValueError("from must be before to; write a night as two openings")
        return self


class OpeningHours(StrictModel):
    """When signatures may be made."""

    time_zone: Annotated[ZoneInfo, PlainValidator(values.time_zone)]
    open: list[Opening] = Field(min_length=1)

    def hours(self) -> Hours:
        """Returns the plan of a week."""
        return weekly(self.time_zone, ((line.days, line.start, line.end) for line in self.open))


class HcertRules(StrictModel):
    """Claims of the HCERTs that are signed; a profile states both."""

    issuer: str | None = Field(None, pattern=r"^[A-Z]{2}$")
    validity_days: int | None = Field(None, ge=1, le=MAX_VALIDITY_DAYS)


class ShcRules(StrictModel):
    """Claims of the SMART Health Cards that are signed; a profile states the issuer.

    Verifiers find the keys at the issuer's URL with /.well-known/jwks.json after it.
    """

    issuer: str | None = Field(
        None, max_length=200, pattern=r"^https://[a-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._~-]+)*$"
    )
    types: Names | None = None


class TimestampRules(StrictModel):
    """What time-stamps say of themselves; a profile states both."""

    policy: str | None = Field(None, max_length=64, pattern=r"^[0-2](\.(0|[1-9][0-9]*)){1,20}$")
    accuracy_seconds: int | None = Field(None, ge=1, le=3600)


class CosigningRules(StrictModel):
    """Facilities whose signed records must come with HCERTs; a profile states both members.

    ``members`` has for dotted paths of the certificate, as v.0.ci, those of the record.
    """

    profiles: Names | None = None
    members: Annotated[dict[str, str], PlainValidator(values.paths)] | None = None


class Content(StrictModel):
    """What payloads must contain; see format_terms.ContentRules.

    ``dvc_schema`` is the name of one of the policy's schemas.
    """

    countries: Names | None = None
    issuers: Annotated[frozenset[str], PlainValidator(values.composed)] | None = None
    certificate_types: (
        Annotated[frozenset[str], PlainValidator(values.certificate_types)] | None
    ) = None
    identifier_prefix: str | None = Field(None, min_length=1)
    future_dates: bool | None = None
    required_members: Names | None = None
    dcc_schema: bool | None = None
    qr_level: Literal["L", "M", "Q", "H"] | None = None
    claims: Claims | None = None
    link_hosts: Annotated[frozenset[str], PlainValidator(values.hosts)] | None = None
    dvc_schema: str | None = None


class Rules(StrictModel):
    """What a profile, a facility and a key may state. None: not stated."""

    formats: Formats | None = None
    algorithms: Algorithms | None = None
    max_batch_items: int | None = Field(None, ge=1, le=MAX_BATCH_ITEMS)
    quotas: Annotated[tuple[values.Quota, ...], PlainValidator(values.quotas)] | None = None
    lifetime_signatures: int | None = Field(None, ge=1, le=MAX_LIFETIME)
    hours: OpeningHours | None = None
    valid_from: Instant | None = None
    valid_until: Instant | None = None
    delegation: bool | None = None
    priority: Literal["high", "normal", "low"] | None = None
    check_every: int | None = Field(None, ge=1, le=1_000_000)
    storage: Literal["token", "wrapped"] | None = None
    hcert: HcertRules | None = None
    shc: ShcRules | None = None
    timestamp: TimestampRules | None = None
    cosigning: CosigningRules | None = None
    content: Content | None = None


class Profile(Rules):
    """Rules that facilities share. Formats, algorithms and batch size have no default."""

    formats: Formats
    algorithms: Algorithms
    max_batch_items: int = Field(ge=1, le=MAX_BATCH_ITEMS)
    blind: Formats | None = None


class FacilityRules(Rules):
    """A facility: its profile, group and clients, and how it narrows the profile."""

    profile: str
    group: str | None = None
    clients: Principals = frozenset()
    keys: dict[str, Rules] = Field(default_factory=dict)


class GroupRules(StrictModel):
    """A province; its clients may sign for the facilities that delegate to it."""

    name: str = Field(min_length=1, max_length=200)
    clients: Principals = frozenset()


class StaffRules(StrictModel):
    """Auditors and operators. Officers are not in the policy: an operation changes them."""

    auditor: Principals = frozenset()
    operator: Principals = frozenset()
