"""Pictures are decoded by Pillow in a child process, and a child that dies costs its picture alone."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from draftloop.execution.bounded_process import ProcessLimits, run_bounded
from draftloop.execution.file_kinds import Kind
from draftloop.execution.pictures import PIXELS, PictureChecker
from tests.code_runs import png

READER = "draftloop.execution.picture_reader"


def picture(form: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, part: bytes) -> bytes:
    return struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))


def interlaced(rows: int = 15) -> bytes:
    """An 8 by 8 grey PNG in the seven passes of Adam7, which are 15 rows of 64 pixels in all."""
    widths = (1, 1, 2, *[2] * 2, *[4] * 2, *[4] * 4, *[8] * 4)
    passes = b"".join(b"\0" + b"\x80" * width for width in widths)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    body = chunk(b"IDAT", zlib.compress(passes[: len(passes) * rows // 15]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, form, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def with_bomb(name: bytes, before: bytes) -> bytes:
    """A PNG with a chunk of 64 kB that unpacks to 64 MB."""
    content = png()
    return content[:33] + chunk(name, before + zlib.compress(bytes(64 << 20))) + content[33:]


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("png", png),
        ("png", interlaced),
        ("png", lambda: png() + b"after its end"),
        ("png", lambda: animated("PNG")),
        *[("png", lambda mode=mode: picture("PNG", mode)) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")],
        *[("jpeg", lambda mode=mode: picture("JPEG", mode)) for mode in ("L", "RGB", "CMYK")],
        ("jpeg", lambda: picture("JPEG", progressive=True)),
    ],
)
def test_a_picture_that_decodes_is_readable(kind: Kind, make: Callable[[], bytes]) -> None:
    assert PictureChecker().problem(kind, make()) == ""


@pytest.mark.parametrize(
    ("kind", "make", "reason"),
    [
        ("png", lambda: picture("PNG")[:-20], "runcated"),
        ("png", lambda: picture("PNG")[:-12], "truncated"),
        ("png", lambda: png(idat=b"no pixels"), "broken data stream"),
        ("png", lambda: png(40, 30, idat=zlib.compress(b"\0" * 9)), "truncated"),
        ("png", lambda: interlaced(9), "truncated"),
        ("png", lambda: png(90_000, 90_000, idat=b"x"), "90000 by 90000 pixels are more than 50,000,000"),
        ("png", lambda: png(0, 3), ""),
        ("jpeg", lambda: picture("JPEG")[:-100], "truncated"),
        ("png", lambda: animated("GIF"), "cannot identify"),
        ("png", lambda: picture("WEBP"), "cannot identify"),
        ("png", lambda: picture("JPEG"), "cannot identify"),
        ("jpeg", lambda: b"%PDF-1.7", "cannot identify"),
        ("png", lambda: b"", "cannot identify"),
        ("svg", lambda: b"<svg/>", "neither PNG nor JPEG"),
    ],
)
def test_what_does_not_decode_as_its_kind_has_a_reason(
    kind: Kind, make: Callable[[], bytes], reason: str
) -> None:
    problem = PictureChecker().problem(kind, make())
    assert problem.startswith("not a readable image: ")
    assert reason in problem


def test_a_picture_at_the_limit_of_pixels_is_read() -> None:
    side = int(PIXELS**0.5)
    assert PictureChecker().problem("png", png(side, side)) == ""
    assert "pixels are more than" in PictureChecker().problem("png", png(side + 1, side + 1))


@pytest.mark.parametrize("bomb", [(b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")])
def test_a_chunk_that_unpacks_to_anything_takes_little_memory(bomb: tuple[bytes, bytes]) -> None:
    ended = run_bounded(READER, ["PNG", str(PIXELS)], ProcessLimits(128 << 20, 10), with_bomb(*bomb))
    assert ended.status in (0, 4), ended


def test_a_reader_that_needs_more_memory_than_its_limit_answers_or_dies() -> None:
    ended = run_bounded(READER, ["PNG", str(PIXELS)], ProcessLimits(64 << 20, 10), png(7000, 7000))
    assert ended.status not in (0, None)


def test_a_reader_that_takes_too_long_is_ended_and_not_remembered() -> None:
    ended = run_bounded("timeit", ["-n", "1000000000"], ProcessLimits(1 << 30, 1))
    assert ended.status is None or ended.status < 0


def test_an_answer_is_remembered_by_content() -> None:
    check = PictureChecker()
    check("png", png())
    check("png", b"no picture")
    assert len(check._reasons) == 2
    assert check("png", png())
    assert not check("png", b"no picture")
    assert len(check._reasons) == 2


@settings(max_examples=8)
@given(st.binary(max_size=200), st.sampled_from(["png", "jpeg"]))
def test_no_bytes_break_it(tail: bytes, kind: Kind) -> None:
    PictureChecker().problem(kind, png()[:41] + tail if kind == "png" else b"\xff\xd8\xff\xe0" + tail)


def test_the_backend_does_not_import_pillow() -> None:
    program = (
        "import sys, draftloop.app, draftloop.serving.server\n"
        "from draftloop.execution.pictures import is_readable_picture\n"
        "is_readable_picture('png', b'')\n"
        "assert 'PIL' not in sys.modules"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
