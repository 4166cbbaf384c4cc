"""Reads QR codes in images with zxing-cpp; shares no code with the appliance.

Usage: read_qr.py < names of files (one a line). Prints one JSON object a line: the text of
the one QR code in the image, or why it is `refused`. Ends with status 1 if one was.
"""

import json
import sys

import zxingcpp
from PIL import Image


def read(name: str) -> dict[str, str]:
    with Image.open(name) as image:
        codes = zxingcpp.read_barcodes(image, formats=zxingcpp.BarcodeFormat.QRCode)
    if len(codes) != 1:
        raise ValueError(f"{len(codes)} QR codes can be read in the image")
    return {"text": codes[0].text}


def main() -> None:
    refused = False
    for line in sys.stdin:
        try:
            verdict = read(line.rstrip("\n"))
        except Exception as error:  # noqa: BLE001 - whatever the packages raise
            verdict, refused = {"refused": f"{type(error).__name__}: {error}"}, True
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()
    sys.exit(refused)


if __name__ == "__main__":
    main()
