"""``signer policy``: what the policy allows, which one is in force, and how another one gets there.

Officers use it from their desks, so only the commands that read rules import what the server needs.
"""

import click

from signer.cli.groups import LazyGroup


@click.group(
    cls=LazyGroup,
    package="signer.cli",
    summaries={
        "diff": "Shows what differs between files and the policy in force.",
        "explain": "Prints whether a principal may sign with a key, and why.",
        "export": "Writes the files of the policy in force into a folder.",
        "get": "Prints the policy in force.",
        "propose": "Proposes that a policy is put in force.",
        "show": "Prints what may be done with the keys of facilities.",
    },
    modules={
        "diff": "policy.in_force",
        "explain": "policy.effective",
        "export": "policy.in_force",
        "get": "policy.in_force",
        "propose": "policy.in_force",
        "show": "policy.effective",
    },
    elsewhere={
        "list": "`signer policy show`",
        "read": "`signer policy get`",
        "write": "`signer policy propose`",
    },
)
def policy() -> None:
    """Shows what the policy allows, reads the one in force, and proposes another one.

    The files on the appliance are a draft until officers have approved them. Which policy is in
    force, an officer learns over the API (--client), and an operator on the appliance from
    its registry (--config).

    \b
      signer policy show --config signer.yaml --facility 01-001
      signer policy explain --config signer.yaml \\
        --principal spiffe://signer.example/province/01 \\
          --key facilities/01-001/keys/records --format JWS
    From an officer's desk:
      signer policy export --in-force policy --client officer-a.yaml
      signer policy diff policy --client officer-a.yaml
      signer policy propose policy --client officer-a.yaml
    """
