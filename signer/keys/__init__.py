"""Keys: the registry, certificates, and the operations that create them."""
