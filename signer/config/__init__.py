"""Reads configuration, client files and policies from YAML, strictly.

``models`` reads ``signer.yaml``, ``strict_yaml`` the YAML that is accepted (the only
module that imports yaml), ``policy_documents`` the files of a policy and the one text that
they make. ``client_file`` needs no pydantic: it is all that a client needs of this package.
"""
