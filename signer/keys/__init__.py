"""Keys: the registry, certificates, and the operations that make them."""
