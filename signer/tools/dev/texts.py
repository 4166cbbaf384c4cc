"""The texts of a development appliance's configuration and policy."""

import json
import re
from pathlib import Path

from signer.errors import OperatorError
from signer.tools.dev.key_plan import load_facilities, principal

SOFTHSM_CONF = """\
# Written by signer dev: the token of this development appliance.
directories.tokendir = {tokens}
objectstore.backend = file
log.level = ERROR
slots.removable = false
"""

CONFIGURATION = """\
# A development appliance, written once by signer dev; edit it as needed.
# Paths are relative to this file.

listen: 127.0.0.1:{port}
metrics: 127.0.0.1:{metrics_port}

tls:
  certificate: pki/server.pem
  key: pki/server.key
  client_ca: pki/client-ca.pem

registry: sqlite:///registry.sqlite
policy: policy
state: state
client: client-operator.yaml
reflection: true              # off elsewhere: tools like grpcurl need no files

audit:
  low_disk_bytes: 16777216    # small, for a developer's machine
  ballast_bytes: 1048576

limits:
  drain_notice_seconds: 0     # no load balancer to notify

tokens:
  - label: {label}
    serial: "{serial}"
    module: {module}
    pin_file: pin
    workers: {workers}
    session_copies: true
    key_lookup: index
    environment:
      SOFTHSM2_CONF: ./softhsm2.conf
"""

SLOW_NOTE = """\
# Written by each `signer dev up --latency` from signer.yaml, which is the file to edit.
"""

POLICY = """\
# The policy of a development appliance, written once by signer dev; edit it as
# needed. It does not limit load tests: the largest batches, unreachable quotas,
# and one in 64 ECDSA and Ed25519 signatures is checked.

roles:                          # officers are in the registry, not here
  auditor:
    - {auditor}
  operator:
    - {operator}

denied_certificates: []

groups:
  "01":
    name: Ha Noi
    clients: []
  "99":
    name: load tests
    clients: []

profiles:
  records:
    formats: [JWS, MESSAGE, COSE_SIGN1]
    algorithms: [ES256, PS256, RS256, EdDSA]
    max_batch_items: 4096
    quotas: ["1,000,000 per second", "10,000,000,000 per day"]
    check_every: 64
    storage: {storage}

  ministry:
    # For its keys to choose from: HCERT, SHC and TIMESTAMP only alone.
    formats: [HCERT, SHC, TIMESTAMP, DIGEST, CMS, CMS_DIGEST]
    blind: [DIGEST, CMS_DIGEST]
    algorithms: [ES256, PS256]
    max_batch_items: 4096
    quotas: ["1,000,000 per second", "10,000,000,000 per day"]
    priority: high
    check_every: 64
    storage: {storage}
    hcert:
      issuer: VN
      validity_days: 365
    shc:
      issuer: https://cards.signer.example
      types: [immunization]
    timestamp:
      policy: 1.3.6.1.4.1.32473.1   # an arc for examples; yours is under your own number
      accuracy_seconds: 1
    content:
      future_dates: false

facilities:
  01-001:
    profile: records
    group: "01"
    clients: [{issuer}]
    keys:
      records-rsa:
        algorithms: [PS256]
        check_every: 1          # checking RSA is cheap
      records-rs256:
        algorithms: [RS256]
        check_every: 1
      records-ed25519:
        algorithms: [EdDSA]
        storage: token          # SoftHSM wraps no Ed25519 keys
  01-002:
    profile: records
    group: "01"
    clients: [{issuer}, {issuer_b}]
  strict:
    profile: records
    group: "01"
    clients: [{issuer}, {issuer_c}]
    check_every: 1              # every signature, as in production
  moh:
    profile: ministry
    clients: [{issuer}]
    keys:
      dcc:
        formats: [HCERT]
      dcc-rsa:
        formats: [HCERT]
        check_every: 1
      dcc-cosigned:
        formats: [HCERT]
        cosigning:              # only beside the facility's signed record, as `signer issue` has it
          profiles: [records]
          members: {{nam: name, dob: born, v.0: vaccination}}
      cards:
        formats: [SHC]
        algorithms: [ES256]
      digest:
        formats: [DIGEST]
        storage: token          # what `signer bench` compares with
      documents:
        formats: [CMS, CMS_DIGEST]
      tsa:
        formats: [TIMESTAMP]
"""

CLIENT = """\
# For `signer ... --client FILE`: the address to call and the caller's certificate.
address: 127.0.0.1:{port}
server_name: localhost
ca: pki/ca.pem
certificate: pki/{client}.pem
key: pki/{client}.key
"""


def policy(storage: str) -> str:
    """Returns the policy of all facilities except those for load tests."""
    names = ("issuer", "issuer-b", "issuer-c", "auditor", "operator")
    principals = {name.replace("-", "_"): principal(name) for name in names}
    return POLICY.format(storage=storage, **principals)


def load_policy(count: int) -> str:
    """Returns the policy file of the facilities for load tests."""
    lines = ["# Facilities for load tests, rewritten by signer dev --facilities.", "facilities:"]
    lines += [
        f'  {facility}: {{profile: records, group: "99", clients: ["{principal("issuer")}"]}}'
        for facility in load_facilities(count)
    ]
    return "\n".join(lines) + "\n"


def with_slow_module(
    configuration: str, shim: Path, module: Path, control: Path, milliseconds: float
) -> str:
    """Returns the configuration with the shim in front of the module of each token.

    Each call of the module takes so much longer. Raises OperatorError if the tokens' lines
    are not as CONFIGURATION has them.
    """
    environment = (
        ("SHIM_MODULE", str(module)),
        ("SHIM_CONTROL", str(control)),
        ("SHIM_LATENCY_US", str(round(milliseconds * 1000))),
        ("SHIM_INDEX", "1"),
    )
    lines = "".join(f"      {name}: {json.dumps(value)}\n" for name, value in environment)
    slow, modules = re.subn(
        r"(?m)^(    module: ).*$", lambda line: line[1] + json.dumps(str(shim)), configuration
    )
    slow, environments = re.subn(r"(?m)^    environment:\n", lambda line: line[0] + lines, slow)
    if not modules or modules != environments:
        raise OperatorError(
            "--latency changes `module` and `environment` of each token in signer.yaml, and finds"
            " them only as `signer dev init` wrote them"
        )
    return SLOW_NOTE + slow


def with_workers(configuration: str, workers: int) -> str:
    """Returns the configuration with another number of workers."""
    return re.sub(r"(?m)^(    workers: ).*$", rf"\g<1>{workers}", configuration)
