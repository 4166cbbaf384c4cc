"""Signer: an HSM-backed batch signing appliance."""

__version__ = "0.1.0"
