"""ImageNet weights of MobileNetV2 for the tour: Keras' own file, downloaded where there is a network, in seconds.

Whoever asks for `WEIGHTS=imagenet` gets the weights from Keras itself, and an error where there are none.
"""

import base64
import hashlib
import http.client
import os
import re
import threading
import urllib.request
from pathlib import Path

from animals10.files import UserError, atomic_write, one_line

URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
SIZES = (96, 128, 160, 192)  # image sizes with a file of their own; all others share that of 224
MOST_BYTES = 30_000_000  # the file has 9.4 million
SECONDS_WITHOUT_DATA = 5.0
SECONDS = 40.0  # in all


def fetch_mobilenet(image_size: int) -> str:
    """Downloads the ImageNet weights of MobileNetV2 to the folder where Keras looks for them, unless they are there.

    Google publishes the MD5 checksum of the file with it, in the header `x-goog-hash`; what does not have it is not
    stored (https://cloud.google.com/storage/docs/xml-api/reference-headers#xgooghash).

    Args:
        image_size: Edge of the images, in pixels.

    Returns:
        Why there are none, in a few words; nothing if they are there.
    """
    name = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{image_size if image_size in SIZES else 224}_no_top.h5"
    path = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models" / name
    if path.exists():
        return ""
    print("Downloading the ImageNet weights of MobileNetV2 (9 MB, once) …", flush=True)
    download = _Download(URL + name)
    if reason := download.wait():
        return reason
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(download.content)
    except UserError as error:
        return one_line(error)
    return ""


class _Download(threading.Thread):
    """Downloads a file in the background, so that nothing can hold up whoever waits: no name server, no silence."""

    def __init__(self, url: str):
        super().__init__(daemon=True)
        self.url, self.content, self.reason, self.is_cancelled = url, b"", "", False
        self.arrived = threading.Event()

    def run(self) -> None:
        try:
            with urllib.request.urlopen(self.url, timeout=SECONDS_WITHOUT_DATA) as response:
                published = re.search(r"md5=([\w+/]+=*)", ",".join(response.headers.get_all("x-goog-hash", [])))
                while (part := response.read1(1 << 16)) and not self.is_cancelled:
                    self.content += part
                    self.arrived.set()
                    if len(self.content) > MOST_BYTES:
                        raise ValueError("the file is too large")
            found = base64.b64encode(hashlib.md5(self.content, usedforsecurity=False).digest()).decode()
            if not published or published[1] != found:
                raise ValueError("what was downloaded does not have the published checksum")
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)  # urllib wraps the error of the network
            self.reason = getattr(reason, "strerror", None) or " ".join(str(reason).split()) or type(reason).__name__

    def wait(self) -> str:
        """Waits for the end, but not long; returns the reason if there is no file."""
        self.start()
        for _ in range(round(SECONDS / SECONDS_WITHOUT_DATA)):
            self.arrived.clear()
            self.join(SECONDS_WITHOUT_DATA)
            if not self.is_alive():
                return self.reason
            if not self.arrived.is_set():
                self.is_cancelled = True
                return "no answer"
        self.is_cancelled = True
        return "the network is too slow"
