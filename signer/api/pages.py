"""How long the pages of a list are."""

from __future__ import annotations

from signer.errors import invalid

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000
PAGE_BYTES = 1024 * 1024
"""A page ends where it passes this, for what it lists can be long."""


def page_size(asked: int) -> int:
    """Returns how many entries a page has where ``asked`` stands in the request.

    Raises CallError.
    """
    if not 0 <= asked <= LARGEST_PAGE:
        raise invalid("page_size", f"is {asked}, expected 0 to {LARGEST_PAGE}")
    return asked or DEFAULT_PAGE
