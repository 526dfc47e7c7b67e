"""Decode a picture with Pillow: the child process of `pictures`, started by `bounded_process`.

Knows Pillow. Imports nothing else that takes time to load. A picture may break it: nothing else runs here.
"""

import io
import sys
import warnings
from collections.abc import Sequence

from PIL import Image

_UNREADABLE = 4  # an exit status
_REASON_CHARS = 200


def main(arguments: Sequence[str]) -> int:
    """Decode the picture on standard input.

    Args:
        arguments: The one format to accept, as Pillow names it, and the most pixels.
    Returns:
        0 where it decodes; else 4, and the reason stands on standard output.
    """
    formats, most_pixels = [arguments[0]], int(arguments[1])
    warnings.simplefilter("ignore")  # on metadata, which nobody reads
    Image.MAX_IMAGE_PIXELS = None  # the limit below is exact
    content = sys.stdin.buffer.read()
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            width, height = image.size
            if width * height > most_pixels:
                raise ValueError(f"{width} by {height} pixels are more than {most_pixels:,}")
            image.verify()  # the checksums
        with Image.open(io.BytesIO(content), formats=formats) as image:
            image.load()
    except MemoryError:
        words = "it takes too much memory"
    except Exception as error:  # noqa: BLE001  what Pillow raises on a broken file depends on what is broken
        words = str(error) or type(error).__name__
    else:
        return 0
    sys.stdout.write(words[:_REASON_CHARS])
    return _UNREADABLE
