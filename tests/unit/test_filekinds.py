"""A file is shown as what its bytes prove it to be, and else only given away."""

import io
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from draftloop.execution.file_kinds import MEDIA_TYPES, charset_of, kind_of, named_kind, wanted_bytes
from draftloop.execution.pictures import is_readable_picture
from tests.code_runs import png

SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><circle r='4'/></svg>"


def chart(form: str) -> bytes:
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([1, 3, 2])
    stream = io.BytesIO()
    figure.savefig(stream, format=form)
    return stream.getvalue()


def kind(name: str, content: bytes) -> str:
    return kind_of(name, content[: wanted_bytes(name)], len(content), is_readable_picture)


@pytest.mark.parametrize(
    ("name", "make", "wanted"),
    [
        ("图.png", lambda: chart("png"), "png"),
        ("a.PNG", png, "png"),
        ("a.jpg", lambda: chart("jpeg"), "jpeg"),
        ("a.svg", lambda: chart("svg"), "svg"),
        ("out/a.pdf", lambda: chart("pdf"), "pdf"),
        ("a.html", lambda: b"<table><tr><td>1</table>", "html"),
        ("a.html", lambda: b"<div><SCRIPT>x()</SCRIPT></div>", "scripted"),
        ("a.html", lambda: b"<img src=x\nonerror = 'x()'>", "scripted"),
        ("a.htm", lambda: b"<a href='JavaScript:x()'>", "scripted"),
        ("a.csv", lambda: b"\xef\xbb\xbf\xe6\x9c\x88,2\n", "csv"),
        ("a.csv", lambda: "月,额\n一,2\n".encode("gb18030"), "csv"),
        ("a.json", lambda: b"{}", "json"),
        ("a.log", lambda: b"", "text"),
        ("a.xlsx", lambda: b"PK\x03\x04", "other"),
    ],
)
def test_what_a_name_promises_and_the_bytes_keep_is_shown(
    name: str, make: Callable[[], bytes], wanted: str
) -> None:
    assert kind(name, make()) == wanted


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", b"<html><script>x()</script>"),
        ("a.png", b""),
        ("a.png", png()[:-20]),
        ("a.png", png()[:40] + b"\xff" + png()[41:]),  # a checksum
        ("a.png", png(idat=b"no pixels")),
        ("a.png", png(40, 30, idat=zlib.compress(b"\0" * 9))),
        ("a.png", png(90_000, 90_000, idat=zlib.compress(b"\0" * 9))),
        ("a.png", png() + b"\0" * wanted_bytes("a.png")),  # too large to be looked at
        ("a.jpg", b"\xff\xd8\xff\xe0 no picture"),
        ("a.jpg", chart("jpeg")[:300]),
        ("a.svg", b"<svg>"),
        ("a.svg", b"<html xmlns='http://www.w3.org/1999/xhtml'/>"),
        ("a.svg", b"<!DOCTYPE s [<!ENTITY a 'x'>]>" + SVG),
        ("a.pdf", b"<script>x()</script>"),
        ("a.csv", b"a\0b"),
        ("a.txt", b"\xff\xff\xff"),
        ("a.html", b"a\0b"),
        ("a.html", b""),
        ("a", b"text"),
        (".png", png()),
        ("png", png()),
        ("a.png/", png()),
        ("a.exe", b"MZ"),
    ],
)
def test_what_the_bytes_do_not_keep_is_a_download(name: str, content: bytes) -> None:
    assert kind(name, content) == "other"


@pytest.mark.parametrize(
    "content",
    [
        b"<iframe src=//a.example>",
        b"<IFrame/src=//a.example>",
        b"<!-- <iframe> -->",
        b"<title><object data=x></title>",
        b"<link rel=preconnect href=//a.example>",
        b"<base target=_blank>",
        b"<meta http-equiv='refresh' content='0;url=//a.example'>",
        b"<meta http-equiv=&#114;efresh content='0;url=//a.example'>",
        b"<meta http-equiv = x http-equiv=content-type>",
        b"<form action=//a.example><input>",
        b"<a href=//a.example>x</a>",
        b"<a href='&#x2f;/a.example'>x</a>",
        b"<a hReF = ' #' href=x>x</a>",
        b"<a xlink:href=//a.example>x</a>",
        b"<a href='#' ping=//a.example>x</a>",
        b"<p onclick=x()>",
        b"<p/onclick=x()>",
        b"<p id='a'onclick=x()>",
        b"<svg><foreignObject><p>x</foreignObject></svg>",
        b"<svg><image href='#'/></svg>",
        b"<svg:script>",
        b"<video poster=x>",
        b"<template><p></template>",
        b"<div\x0bonclick=x()>",
        b"<ifr\x1b(Bame src=//a.example>",
        "<p>汇总".encode("gb18030"),
        "<iframe>".encode("utf-16"),
        "<iframe>".encode("utf-7"),
    ],
)
def test_html_that_may_do_something_is_shown_after_a_click_alone(content: bytes) -> None:
    assert kind("a.html", content) in ("scripted", "other")


@pytest.mark.parametrize(
    "content",
    [
        "<!DOCTYPE html><html lang='zh'><meta charset='utf-8'><style></style><p>汇总 a < b, ping: on=1, 3<4",
        "<meta http-equiv='Content-Type' content='text/html; charset=utf-8'><a href='#a'>x</a>",
        "<table border='1' class='dataframe'><thead><tr style='text-align: right;'><th></th></tr></table>",
        "<img src='data:image/png;base64,AAAA'><svg><path d='M0 0'/><use xlink:href='#m'/></svg>",
    ],
)
def test_tables_and_drawings_are_shown_at_once(content: str) -> None:
    assert kind("a.html", content.encode()) == "html"


@pytest.mark.parametrize(
    "inner",
    [
        b"<foreignObject><iframe xmlns='http://www.w3.org/1999/xhtml' src='//a.example'/></foreignObject>",
        b"<h:iframe xmlns:h='http://www.w3.org/1999/xhtml' src='http://a.example'/>",
    ],
)
def test_an_svg_with_a_frame_in_it_is_a_download(inner: bytes) -> None:
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'>%s</svg>"
    assert kind("a.svg", svg % inner) == "other"
    assert kind("a.svg", svg % b"<foreignObject/>") == "svg"


@given(st.sampled_from(["a.png", "a.jpg", "a.svg", "a.pdf", "a.html", "a.csv"]), st.binary(max_size=200))
def test_no_bytes_break_it(name: str, tail: bytes) -> None:
    beginnings = {"a.png": png()[:41], "a.jpg": b"\xff\xd8\xff\xe0", "a.svg": SVG[:50]}
    content = beginnings.get(name, b"") + tail
    assert kind_of(name, content, len(content), lambda _kind, _content: False) in MEDIA_TYPES


def test_a_character_cut_in_two_keeps_its_charset() -> None:
    for charset in ("utf-8", "gb18030"):
        assert charset_of("汇总".encode(charset)[:-1]) == charset
    assert charset_of(b"\xff\xff") is None


def test_a_name_says_how_much_is_read() -> None:
    assert (named_kind("a.xlsx"), wanted_bytes("a.xlsx")) == ("other", 0)
    assert 0 < wanted_bytes("a.csv") < wanted_bytes("a.svg") < wanted_bytes("a.png")
