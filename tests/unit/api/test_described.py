import pytest

from signer.api.described import DescribedSymbols

SIGNING = "signer/v1/signing.proto"


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("signer.v1.SigningService", SIGNING),
        ("signer.v1.SigningService.SignBatch", SIGNING),
        ("signer.v1.SignBatchRequest", SIGNING),
        ("google.rpc.ErrorInfo", "google/rpc/error_details.proto"),
        ("google.rpc.RetryInfo", "google/rpc/error_details.proto"),
    ],
)
def test_reflection_finds_messages_services_methods_and_details(symbol: str, file: str) -> None:
    assert DescribedSymbols().FindFileContainingSymbol(symbol).name == file


@pytest.mark.parametrize(
    "symbol", ["", "nothing", "signer.v1.Nothing", "signer.v1.SigningService.Nothing"]
)
def test_what_is_not_there_is_not_found(symbol: str) -> None:
    with pytest.raises(KeyError):
        DescribedSymbols().FindFileContainingSymbol(symbol)


def test_files_are_found_by_name() -> None:
    assert DescribedSymbols().FindFileByName(SIGNING).name == SIGNING
