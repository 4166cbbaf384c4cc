"""Reads configuration, client files and policies from YAML, strictly.

``models`` reads ``signer.yaml``, ``strict_yaml`` the YAML that is accepted (the only
module that imports yaml), ``policy_files`` the files of a policy and the one text that they
make, ``policy_documents`` what they say. ``client_file`` and ``policy_files`` need no pydantic:
they are all that a client needs of this package.
"""
