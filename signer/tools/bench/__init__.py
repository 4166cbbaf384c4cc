"""``signer bench``: the rate of the appliance beside the rate of a C loop on the same token."""
