"""HTML is rewritten as sanitize-html does it, and read as a browser with scripting shows it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftloop.labelling.passages import HtmlPassage, plain_text
from draftloop.labelling.sanitizing import sanitized
from tests.documents import DOCUMENTS

# Written by sanitize-html 2.17.0 with htmlparser2 8.0.2, those of Label Studio 1.23.2, and its options.
WRITTEN = [
    json.loads(line) for line in (Path(__file__).parents[1] / "sanitized.jsonl").read_bytes().splitlines()
]


_OF_A_HEAD = ("<title>", "<style>", "<noscript>", "<noframes>")


@pytest.mark.parametrize("document", WRITTEN, ids=range(len(WRITTEN)))
def test_html_is_rewritten_as_the_page_does(document: dict[str, str]) -> None:
    assert sanitized(document["html"]) == document["written"]


@pytest.mark.parametrize(
    ("html", "text", "place"),
    [
        # What a browser with scripting takes for text counts as it is written, and nobody sees it.
        ("<noscript><p class=''>x &lt;</p></noscript>end", "end", len("<p>x &lt;</p>")),
        ("<noembed><b>x</b></noembed>end", "end", len("<b>x</b>")),
        ("<noframes>x &amp; y</noframes>end", "end", len("x &amp; y")),
        ("<xmp>x &amp; <b></xmp>end", "x &amp; <b></b>\nend", len("x &amp; <b></b>")),
        ("a<plaintext>x<b>end", "a\nx<b>end</b></plaintext>", len("ax<b>")),
        ("<textarea>\n<b>x</textarea>end", "<b>x</b>end", len("<b>x</b>")),
        ("<iframe>x</iframe><script>x</script>end", "end", 0),
        ("<iframe src='https://youtu.be/x'>x</iframe>end", "end", 1),
        ("<template>x</template>end", "end", 0),
        ("<title>first</title>end", "end", 5),
        ("a<title>b &amp; c</title>end", "aend", len("ab & c")),
        ("<style>p{}</style>end", "end", 3),
        ("<svg><title>t</title><text>x</text></svg>end", "xend", 2),
        ("<table>moved<tr><td>x</table>end", "moved\nx\nend", 6),
        ("<select><option>a<option>b</select>end", "a\nb\nend", 2),
        ("<frameset><frame></frameset>", "", -1),
        ("a\r\nb\rc&#13;&#10;end", "a b c end", 6),
        ("a\0b&#0;end", "ab\ufffdend", 3),
        ("<p>a&#x80;&notit;end", "a€¬it;end", 6),
        ("a<!-- b > -->end", "aend", 1),
        ("a<!--> b -->end", "a b -->end", 7),
        ("a</>end", "a</>end", 4),
        ("<div hidden='hidden'>x</div><p style='color: red; DISPLAY: none'>y</p>end", "end", 2),
        ("<div hidden>x</div>end", "x\nend", 1),  # sanitize-html takes the empty attribute out
        ("<dialog>x</dialog><dialog open>y</dialog>end", "y\nend", 2),
        ("<rp>(</rp>end", "end", 1),
        ("a<blockquote>b</blockquote>end", "a\nb\nend", 2),
        ("<pre>\n  x\n\n    y\n</pre>end", "  x\n    y\nend", 11),
    ],
)
def test_positions_count_the_document_and_the_text_is_what_is_shown(html: str, text: str, place: int) -> None:
    for inline in (False, True):
        passage = HtmlPassage.of(html, inline=inline)
        assert passage.text == text
        if html.startswith(_OF_A_HEAD) and not inline:
            continue  # it stands in the head, which is not counted
        start = passage.text.rfind("end")
        position = passage.place(start, start + 3) if start >= 0 else None
        assert (position["globalOffsets"]["start"] if position else -1) == place


@given(st.text(st.sampled_from("<>/!-?&#;=\"' \n\r\0abpx[]"), max_size=60) | st.sampled_from(DOCUMENTS))
@settings(max_examples=300)
def test_no_document_is_too_odd(html: str) -> None:
    for inline in (False, True):
        passage = HtmlPassage.of(html, inline=inline)
        for run in passage.placed_runs:
            position = passage.place(run.at, run.at + run.length)
            assert position is not None
            assert passage.find(position) == (run.at, run.at + run.length)
    plain_text(html)


@pytest.mark.parametrize(
    "html",
    [
        "<b>" * 20_000,
        "<b>" * 50_000 + "</i>" * 50_000,
        "<a" + "/" * 200_000 + "x",
        "<a" + "/ " * 200_000,
        "</1>" * 50_000,
        "</ " * 50_000,
        "<a" + " " * 200_000,
        "<a b" + " " * 200_000,
        "&#x" + "f" * 200_000,
        "&" * 200_000,
        "<a href='" + "<!--" * 50_000 + "'>",
        "<a style='" + "/*" * 50_000 + "'>",
        "<title>" * 20_000,
    ],
)
def test_no_document_takes_without_end(html: str) -> None:
    assert isinstance(sanitized(html), str)
