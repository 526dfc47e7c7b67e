"""Previews of input files for prompt and page: bounded, escaped, and marked where estimated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.execution.preview import TEXT_CHARS, Seen, Table, to_html, to_text, type_of

SALES = Table("", ("日期", "城市", "销售额"), (("2024-01-03", "北京", "12.5"), ("2024-01-04", "上海", "")), 2)


def test_a_table_is_described_with_types_and_sample_values() -> None:
    assert to_text(Seen("销售.csv", 2048, "CSV in utf-8, separated by commas", (SALES,))) == (
        "销售.csv: CSV in utf-8, separated by commas, 2 KB, 2 rows, 3 columns\n"
        "- 日期 (date): 2024-01-03, 2024-01-04\n"
        "- 城市 (text): 北京, 上海\n"
        "- 销售额 (number, some empty): 12.5"
    )


def test_an_estimate_is_called_one() -> None:
    table = Table("", ("a",), (("1",),), 23_456_789, estimated=True)
    for text in (to_text(Seen("a.csv", 1, "CSV", (table,))), to_html(Seen("a.csv", 1, "CSV", (table,)))):
        assert "about 23,000,000 rows (estimated)" in text


def test_sheets_and_lines_are_described() -> None:
    book = Seen(
        "a.xlsx",
        1,
        "Excel workbook",
        (Table("Sheet 一月", ("x",), (("1",),), 1), Table("Sheet 2", (), (), 0)),
    )
    assert to_text(book).splitlines() == [
        "a.xlsx: Excel workbook, 1 bytes",
        "Sheet 一月: 1 row, 1 column",
        "- x (integer): 1",
        "Sheet 2: 0 rows, 0 columns",
    ]
    log = Seen("a.log", 1, "LOG text in utf-8", (), ("GET /\x1b[31m", "POST"), 2)
    assert to_text(log).splitlines()[1:] == ["| GET / [31m", "| POST"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "+30"], "integer"),
        (["1", "2.5", "1e3"], "number"),
        (["007", "123"], "text"),
        (["2024-01-03", "2024/1/4"], "date"),
        (["2024年1月3日"], "date"),
        (["2024-01-03 10:00:00", "2024-01-03T10:00:00Z"], "date and time"),
        (["10:30"], "time"),
        (["true", "False"], "true or false"),
        (["12%", "3.5 %"], "percent"),
        (["1", "2", "3", "4", "N/A"], "integer, some other"),
        (["1", "2", ""], "integer, some empty"),
        (["", " "], "empty"),
        ([], "empty"),
        (["a", "1"], "text"),
    ],
)
def test_a_column_has_the_type_of_its_values(values: list[str], kind: str) -> None:
    assert type_of(values) == kind


def test_columns_that_do_not_fit_are_counted_and_named() -> None:
    columns = tuple(f"column number {number}" for number in range(200))
    text = to_text(Seen("wide.csv", 1, "CSV", (Table("", columns, (("x" * 100,) * 200,), 1),)))
    assert len(text) <= TEXT_CHARS
    last = text.splitlines()[-1]
    shown = sum(line.startswith("- ") for line in text.splitlines())
    assert last.startswith(f"... and {200 - shown} more columns")


def test_tables_share_the_bound_and_those_that_do_not_fit_are_counted() -> None:
    wide = tuple(f"column number {number}" for number in range(100))
    sheets = tuple(Table(f"Sheet {number}", wide, (), 0) for number in range(3))
    lines = to_text(Seen("a.xlsx", 1, "Excel workbook", sheets)).splitlines()
    assert sum(line.startswith("Sheet ") for line in lines) == 3
    assert sum("more columns" in line for line in lines) == 3
    sheets = tuple(Table(f"Sheet {number}", wide, (), 0) for number in range(60))
    text = to_text(Seen("a.xlsx", 1, "Excel workbook", sheets))
    shown = sum(line.startswith("Sheet ") for line in text.splitlines())
    assert shown > 3
    assert text.endswith(f"\n... and {60 - shown} more tables")
    assert len(text) <= TEXT_CHARS


@given(
    st.integers(1, 30),
    st.lists(st.text(max_size=200), min_size=1, max_size=60).flatmap(
        lambda names: st.tuples(
            st.just(names), st.lists(st.tuples(*[st.text(max_size=60) for _ in names]), max_size=4)
        )
    ),
    st.lists(st.text(max_size=300), max_size=60),
)
def test_the_bound_holds_whatever_a_file_holds(
    count: int, table: tuple[list[str], list[tuple[str, ...]]], lines: list[str]
) -> None:
    names, rows = table
    tables = [Table(names[0] if count > 1 else "", tuple(names), tuple(rows), len(rows))] * count
    seen = Seen("a" * 100, 5, "CSV", tuple(tables), tuple(lines), len(lines))
    text = to_text(seen)
    assert len(text) <= TEXT_CHARS
    assert text.startswith("aaa")
    text.encode()  # no lone surrogates
    to_html(seen).encode()


def test_nothing_of_a_file_is_markup_on_the_page() -> None:
    evil = "<script>alert(1)</script>\"'&"
    seen = Seen(evil, 1, "CSV", (Table(evil, (evil,), ((evil,),), 1),), (evil,), 1)
    page = to_html(seen)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5


def test_annotators_see_numbers_by_their_right_ends_and_what_is_left_out_counted() -> None:
    rows = tuple((f"北京{n}", str(n * 1.5), "" if n else "x", f"{n}%") for n in range(9))
    page = to_html(Seen("a.csv", 1, "CSV", (Table("", ("城市", "金额", "备注", "折扣"), rows, 40),)))
    assert '<th>城市</th><th align="right">金额</th><th>备注</th><th align="right">折扣</th>' in page
    assert '<td>北京2</td><td align="right">3.0</td><td></td><td align="right">2%</td>' in page
    assert page.count("<tr>") == 1 + 5 + 1
    assert '<td colspan="4">… and 35 more rows</td>' in page
    wide = to_html(Seen("a.csv", 1, "CSV", (Table("", ("a",) * 30, (("1",) * 30,), 1),)))
    assert (wide.count("<th"), wide.count("<td"), "more row" in wide) == (20, 20 + 2, False)
    log = to_html(Seen("a.log", 1, "text", (), ("one",), 1))
    assert "white-space:pre;" in log
    assert "monospace!important" in log, "Label Studio forces its own font on everything"
