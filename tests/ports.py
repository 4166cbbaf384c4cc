"""Ports of the servers that tests start."""

from signer.tools.dev import reserve_ports


def free_ports() -> tuple[int, int]:
    """Two ports that are this process's until it ends.

    None of them is one that ``signer dev init`` may have chosen, which keeps its ports only until
    it ends: its appliance would later take them from ours.
    """
    return reserve_ports(range(26_000, 32_000))
