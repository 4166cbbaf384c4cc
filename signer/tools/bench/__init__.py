"""``signer bench``: the appliance beside a C loop on the same token, in short slices by turns."""
