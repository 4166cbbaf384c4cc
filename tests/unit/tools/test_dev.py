"""The ports of development appliances, of which many are made at once."""

import secrets
import socket
import subprocess
import sys

import pytest

from signer.tools.dev import reserve_ports
from tests.ports import free_ports

_LISTEN = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    pass
"""


def test_ports_are_not_given_out_twice_while_nothing_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = [port - 20_000 for port in reserve_ports()]
    random = secrets.randbelow
    again = [*chosen, *chosen]
    monkeypatch.setattr(secrets, "randbelow", lambda most: again.pop() if again else random(most))
    assert {*reserve_ports()}.isdisjoint(port + 20_000 for port in chosen)
    assert not again


def test_ports_of_tests_are_not_those_of_an_appliance_whose_owner_is_gone() -> None:
    assert {port // 26_000 for port in free_ports()} == {1}
    assert {port // 26_000 for port in reserve_ports()} == {0}


def test_a_server_of_another_process_listens_on_a_reserved_port_again_and_again() -> None:
    for port in reserve_ports():
        for _ in range(2):
            subprocess.run([sys.executable, "-c", _LISTEN, str(port)], check=True)
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
