"""One appliance among several, and calls that are cut off under way."""

from threading import Event, Thread
from typing import Any

import grpc
import pytest

from signer.client import SignerClientError, UnavailableError
from signer.client._channels import target_of

KEY = "facilities/f/keys/k"
PAYLOADS = [b"one"]


def test_a_call_that_is_cut_off_goes_out_again_under_its_id(stage: Any) -> None:
    """As a daemon that is stopping does to what has just come."""

    def script(request: Any, number: int) -> Any:
        return (
            stage.signed(request, {})
            if number
            else stage.refuse(grpc.StatusCode.CANCELLED, "", domain="")
        )

    with stage.client(script) as client:
        [item] = client.sign(KEY, "JWS", PAYLOADS, batch_items=1)
    assert item.ok
    first, second = stage.played.requests
    assert first == second


def test_a_client_that_is_closed_under_its_calls_does_not_try_again(stage: Any) -> None:
    at_work, over = Event(), Event()

    def script(request: Any, _: int) -> Any:
        at_work.set()
        assert over.wait(20)
        return stage.signed(request, {})

    with stage.client(script) as client:
        results = client.sign(KEY, "JWS", PAYLOADS, batch_items=1, timeout=600)
        told: list[BaseException] = []

        def ask() -> None:
            try:
                list(results)
            except SignerClientError as error:
                told.append(error)

        thread = Thread(target=ask)
        thread.start()
        assert at_work.wait(20)
        client.close()
        thread.join(20)
        over.set()
    assert isinstance(told[0], UnavailableError)
    assert told[0].reason == "CLOSED"


@pytest.mark.parametrize(
    ("address", "target", "shared"),
    [
        ("signer.example:7443", "signer.example:7443", False),
        ("10.0.0.1:7443", "10.0.0.1:7443", False),
        ("10.0.0.1:7443,10.0.0.2:7444", "ipv4:10.0.0.1:7443,10.0.0.2:7444", True),
        ("10.0.0.1:7443, 10.0.0.2:7444", "ipv4:10.0.0.1:7443,10.0.0.2:7444", True),
        ("[fd00::1]:7443,[fd00::2]:7443", "ipv6:[fd00::1]:7443,[fd00::2]:7443", True),
        ("dns:///signer.example:7443", "dns:///signer.example:7443", True),
    ],
)
def test_addresses_are_told_to_grpc_in_its_own_way(address: str, target: str, shared: bool) -> None:
    assert target_of(address) == (target, shared)


@pytest.mark.parametrize(
    "address",
    [
        "a.example:7443,b.example:7443",
        "10.0.0.1:7443,[fd00::2]:7443",
        "10.0.0.1:7443,",
        "10.0.0.1,10.0.0.2",
        "fd00::1:7443,fd00::2:7443",
        "[10.0.0.1]:7443,[10.0.0.2]:7443",
    ],
)
def test_addresses_of_another_form_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="dns:///signer"):
        target_of(address)


def test_several_addresses_need_the_name_in_their_certificate(stage: Any) -> None:
    with pytest.raises(ValueError, match="server_name"):
        stage.connect("127.0.0.1:1,127.0.0.1:2", None)


def test_one_of_several_is_called_only_while_it_serves(stage: Any) -> None:
    """The played appliance is NOT_SERVING: alone it is called, among others it is not."""
    with stage.client() as client:
        assert client.sign_batch(KEY, "JWS", PAYLOADS)[0].ok
        several = stage.connect(f"{stage.address},127.0.0.1:1")
        with several, pytest.raises(UnavailableError):
            several.sign_batch(KEY, "JWS", PAYLOADS, timeout=20)
