"""The worker process: the only side that loads PKCS#11 and reads a PIN."""
