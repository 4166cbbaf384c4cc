"""Code generated from proto/signer/v1 by `make proto`; checked for drift by `make check`."""
