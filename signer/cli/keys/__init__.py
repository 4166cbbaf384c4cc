"""``signer keys``: shows keys, plans and proposes their rotation, stops and publishes them."""

import click

from signer.cli.groups import CommandGroup
from signer.cli.keys.exporting import export
from signer.cli.keys.requests import certificates, requests
from signer.cli.keys.rotating import plan, rotate
from signer.cli.keys.showing import csr, list_keys, show, wrapping_keys
from signer.cli.keys.stopping import compromise, suspend, suspensions


@click.group(
    cls=CommandGroup,
    commands=[
        certificates,
        compromise,
        csr,
        export,
        list_keys,
        plan,
        requests,
        rotate,
        show,
        suspend,
        suspensions,
        wrapping_keys,
    ],
    elsewhere={
        "activate": "`signer operations propose activate`",
        "create": "`signer operations propose create-key`",
        "deactivate": "`signer operations propose deactivate`",
        "delete": "`signer operations propose schedule-destruction`, then `destroy`",
        "destroy": "`signer operations propose destroy`",
        "disable": "`signer keys suspend`",
        "enable": "`signer operations propose resume`",
        "generate": "`signer operations propose create-key`",
        "import": "`signer operations propose import-certificate`",
        "resume": "`signer operations propose resume`",
        "revoke": "`signer keys compromise`",
    },
)
def keys() -> None:
    """Shows keys, plans and rotates them, stops them, and publishes them.

    Private keys are created inside the HSM and never leave it. An operation that creates or
    changes keys is proposed by one officer and approved by another: see
    `signer operations --help`.

    \b
    All keys, and those that end soon:
      signer keys list --client officer-a.yaml
      signer keys plan --days 60 --client officer-a.yaml

    \b
    New versions of all keys that end soon:
      signer keys rotate --due 60 --activate-at +14d --overlap 7d \\
        --client officer-a.yaml

    \b
    Stop a facility, now:
      signer keys suspend facilities/01-001 --reason "forged certificates" \\
        --client officer-a.yaml
    """
