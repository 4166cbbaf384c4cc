"""``signer bench``: what the appliance signs beside what a C loop signs (DESIGN section 10)."""
