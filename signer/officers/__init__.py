"""Operations under dual control: what nobody may do alone, and what one officer may at once.

``desk`` is the pipeline; ``kinds`` lists every kind of operation; ``store`` keeps
them in the registry. The package joins keys, policy and the audit log (ADR 16).
"""
