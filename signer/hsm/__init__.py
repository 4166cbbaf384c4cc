"""The HSM layer: a scheduler and supervised worker processes in front of PKCS#11 tokens."""
