"""The front process's side of the HSM: scheduler, pools and supervised worker processes."""
