"""``python -m signer`` is the command ``signer``."""

from signer.cli.main import main

if __name__ == "__main__":
    main()
