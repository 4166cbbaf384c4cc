"""The insides of ``signer.client``; import that instead."""
