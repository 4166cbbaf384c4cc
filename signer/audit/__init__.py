"""The evidence: what was signed, when, for whom and under which rule."""
