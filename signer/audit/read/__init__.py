"""Readers of the log: replay, search, proof and verification."""
