"""Reads the QR code of each image with zxing-cpp; prints a JSON list of their texts.

    python read_qr.py IMAGE...

Needs zxing-cpp and pillow. Exits with 1 if an image has not exactly one QR code.
"""

import json
import sys

import zxingcpp
from PIL import Image

texts = []
for path in sys.argv[1:]:
    with Image.open(path) as image:
        found = zxingcpp.read_barcodes(image.convert("L"), formats=zxingcpp.BarcodeFormat.QRCode)
    if len(found) != 1:
        sys.exit(f"{path} has {len(found)} QR codes")
    texts.append(found[0].text)
print(json.dumps(texts))
