"""Input files: looked up below the root only, hashed, and previewed from their heads."""

import hashlib
import json
import os
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from draftloop.errors import SetupError, TaskError
from draftloop.execution.heads import look
from draftloop.execution.inputs import find_input
from draftloop.execution.preview import Seen, to_text
from draftloop.importing.code_tasks import CodeTasks
from draftloop.runs.run import (
    INPUTS_KEY,
    NO_RUN,
    OUTPUTS_KEY,
    PREVIEW_KEY,
    SCHEMA_KEY,
    inputs_of,
)

CONFIG = '<View><HyperText name="p" value="$input_preview"/></View>'


def seen(tmp_path: Path, name: str, content: bytes) -> Seen:
    (tmp_path / name).write_bytes(content)
    return look(tmp_path / name, name)


# ---------------------------------------------------------------- what is seen


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_table_is_read_in_the_encodings_and_delimiters_that_are_met(
    tmp_path: Path, encoding: str, delimiter: str
) -> None:
    rows = [["日期", "城市", "备注"], ["2024-01-03", "北京", '"一,; 二"'], ["2024-01-04", "上海", ""]]
    lines = [delimiter.join(row) for row in rows]
    preview = seen(tmp_path, "a.csv", "\r\n".join(lines).encode(encoding))
    (table,) = preview.tables
    assert table.columns == ("日期", "城市", "备注")
    assert table.rows == (("2024-01-03", "北京", "一,; 二"), ("2024-01-04", "上海", ""))
    assert (table.count, table.estimated) == (2, False)
    assert encoding in preview.kind


def test_a_quoted_cell_may_hold_line_ends(tmp_path: Path) -> None:
    (table,) = seen(tmp_path, "a.csv", b'a,b\n"one\ntwo",2\n').tables
    assert table.rows == (("one\ntwo", "2"),)


def test_one_column_and_ragged_rows_are_tables_too(tmp_path: Path) -> None:
    (table,) = seen(tmp_path, "a.csv", b"name\nx\ny\n").tables
    assert (table.columns, table.count) == (("name",), 2)
    (table,) = seen(tmp_path, "b.csv", b"a,b,c\n1,2\n1,2,3,4\n1,2,3\n").tables
    assert table.rows == (("1", "2", ""), ("1", "2", "3"), ("1", "2", "3"))


def test_of_a_huge_table_only_the_head_is_read_and_the_rows_are_estimated(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    row = b"2024-01-03,\xe5\x8c\x97\xe4\xba\xac,12.50\n"
    with path.open("wb") as file:
        file.write(b"a,b,c\n" + row * 20_000)
        file.truncate(1_800_000_000)  # a hole: reading it would take its time
    preview = look(path, "large.csv")
    (table,) = preview.tables
    assert table.estimated
    assert table.count == pytest.approx(1_800_000_000 / len(row), rel=0.01)
    text = to_text(preview)
    assert "1.68 GB" in text
    assert "(estimated)" in text


def test_a_workbook_is_read_sheet_by_sheet(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    first = book.active
    first.title = "一月"
    first.append(["日期", "金额", "已付"])
    first.append([date(2024, 1, 3), 12.5, True])
    first.append([date(2024, 1, 4), 3, None])
    book.create_sheet("empty")
    book.save(tmp_path / "a.xlsx")
    preview = look(tmp_path / "a.xlsx", "a.xlsx")
    assert [(table.name, table.columns, table.count) for table in preview.tables] == [
        ("Sheet 一月", ("日期", "金额", "已付"), 2),
        ("Sheet empty", (), 0),
    ]
    assert preview.tables[0].rows == (("2024-01-03", "12.5", "true"), ("2024-01-04", "3", ""))
    assert "- 日期 (date): 2024-01-03, 2024-01-04" in to_text(preview)


def test_a_broken_workbook_or_zip_bomb_has_no_preview(tmp_path: Path) -> None:
    preview = seen(tmp_path, "a.xlsx", b"PK\x03\x04 not really")
    assert (preview.kind, preview.tables) == ("Excel workbook that cannot be previewed", ())
    with (
        zipfile.ZipFile(tmp_path / "b.xlsx", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("xl/sharedStrings.xml", "w") as entry,
    ):
        for _ in range(600):
            entry.write(bytes(1 << 20))
    assert "cannot be previewed" in look(tmp_path / "b.xlsx", "b.xlsx").kind


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.json", '[{"城市": "北京", "n": 1}, {"城市": "上海", "x": [1]}]', ("城市", "n", "x")),
        ("a.jsonl", '{"城市": "北京", "n": 1}\n{"城市": "上海", "x": [1]}\n', ("城市", "n", "x")),
        ("b.json", '{"title": "t", "orders": [{"id": 1}, {"id": 2}]}', ("title", "orders")),
    ],
)
def test_json_is_a_table_of_its_objects(
    tmp_path: Path, name: str, content: str, columns: tuple[str, ...]
) -> None:
    preview = seen(tmp_path, name, content.encode())
    assert preview.tables[0].columns == columns
    if name == "b.json":
        assert (preview.tables[1].name, preview.tables[1].columns, preview.tables[1].count) == (
            "orders",
            ("id",),
            2,
        )
    else:
        assert preview.tables[0].rows[1] == ("上海", "", "[1]")
        assert preview.tables[0].count == 2


def test_a_long_list_of_objects_is_estimated(tmp_path: Path) -> None:
    content = json.dumps([{"a": number, "b": "x" * 90} for number in range(10_000)])
    (table,) = seen(tmp_path, "a.json", content.encode()).tables
    assert table.estimated
    assert table.count == pytest.approx(10_000, rel=0.05)


SHARED_STRINGS = (
    b'<Override PartName="/xl/sharedStrings.xml" ContentType='
    b'"application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"/>'
)


def book_with(path: Path, strings: bytes, *, sheets: int = 1) -> Path:
    """Make a workbook whose texts are these bytes of XML."""
    book = openpyxl.Workbook()
    book.active["A1"] = "x"
    for number in range(sheets - 1):
        book.create_sheet(f"s{number}")["A1"] = "x"
    made = path.with_suffix(".made.xlsx")
    book.save(made)
    with (
        zipfile.ZipFile(made) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            content = content.replace(b't="inlineStr"><is><t>x</t></is>', b't="s"><v>0</v>')
            target.writestr(name, content.replace(b"</Types>", b"%s</Types>" % SHARED_STRINGS))
        target.writestr("xl/sharedStrings.xml", strings)
    return path


XMLNS = b"xmlns='http://schemas.openxmlformats.org/spreadsheetml/2006/main'"


def test_a_workbook_that_takes_for_ever_costs_its_preview_alone(tmp_path: Path) -> None:
    strings = b"<sst %s>%s</sst>" % (XMLNS, b"<si><t>a</t></si>" * 11_000_000)
    path = book_with(tmp_path / "slow.xlsx", strings)
    assert path.stat().st_size < 4 << 20
    began = time.monotonic()
    preview = look(path, "slow.xlsx")
    assert time.monotonic() - began < 60, "it took as long as it wanted"
    assert preview.kind.startswith("Excel workbook that cannot be previewed: it takes ")
    assert preview.tables == ()


def test_a_workbook_that_unpacks_to_more_than_a_limit_is_not_read(tmp_path: Path) -> None:
    strings = b"<sst %s>%s</sst>" % (XMLNS, b"<si><t>a</t></si>" * 13_000_000)
    kind = look(book_with(tmp_path / "a.xlsx", strings), "a.xlsx").kind
    assert kind == "Excel workbook that cannot be previewed: it unpacks to more than 200 MB"


def test_entities_of_a_workbook_are_not_expanded(tmp_path: Path) -> None:
    entities = b"".join(b"<!ENTITY a%d '%s'>" % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 12))
    strings = b"<!DOCTYPE s [<!ENTITY a0 'x'>%s]><sst %s><si><t>&a11;</t></si></sst>" % (entities, XMLNS)
    assert "cannot be previewed" in look(book_with(tmp_path / "a.xlsx", strings), "a.xlsx").kind


def test_long_cells_and_many_sheets_are_cut(tmp_path: Path) -> None:
    strings = b"<sst %s><si><t>%s</t></si></sst>" % (XMLNS, b"a" * (8 << 20))
    preview = look(book_with(tmp_path / "a.xlsx", strings, sheets=40), "a.xlsx")
    assert len(preview.tables) == 20
    assert preview.tables[0].columns == ("a" * 300,)


def test_a_workbook_is_read_without_the_backends_secrets(tmp_path: Path) -> None:
    """The reader is another process: what it may know is looked at from outside."""
    path = tmp_path / "slow.xlsx"
    book_with(path, b"<sst %s>%s</sst>" % (XMLNS, b"<si><t>a</t></si>" * 300_000))
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(look, path, "slow.xlsx")
        environments: set[bytes] = set()
        while not pending.done():
            environments |= {environment for environment in map(environment_of, children()) if environment}
            time.sleep(0.02)
    assert environments, "no reader was seen"
    names = {
        entry.partition(b"=")[0]
        for environment in environments
        for entry in environment.split(b"\0")
        if entry
    }
    assert names <= {b"PYTHONPATH", b"LANG"}


def children() -> list[Path]:
    own = str(os.getpid())
    processes = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[1] == own:
                processes.append(path.parent)
    return processes


def environment_of(process: Path) -> bytes:
    try:
        command = (process / "cmdline").read_bytes()
        return (process / "environ").read_bytes() if b"draftloop.execution.heads" in command else b""
    except OSError:
        return b""


def test_json_nested_to_the_limit_is_text(tmp_path: Path) -> None:
    for depth in (*range(900, 1000, 7), 10_000):
        content = b'{"a": ' + b"[" * depth + b"]" * depth + b"}"
        assert seen(tmp_path, "a.json", content).kind.startswith("JSON")
        assert seen(tmp_path, "a.jsonl", content + b"\n").kind.startswith("JSON")


def test_a_giant_field_of_a_csv_breaks_nothing(tmp_path: Path) -> None:
    assert seen(tmp_path, "a.csv", b'a,b\n"' + b"x" * 250_000 + b'",1\n').kind.startswith("CSV")


@pytest.mark.parametrize(
    ("name", "content", "kind", "lines"),
    [
        ("a.log", b"GET /\nPOST /\n", "LOG text in utf-8", ("GET /", "POST /")),
        (
            "a.srt",
            "1\r\n00:00:01,000 --> 00:00:02,000\r\n你好\r\n".encode("gb18030"),
            "SRT text in gb18030",
            None,
        ),
        ("a.json", b"[1, 2", "JSON text in utf-8", ("[1, 2",)),
        ("a.json", b"[" * 200_000, "JSON text in utf-8", None),
        ("a.txt", b"x", "text in utf-8", ("x",)),
        ("Makefile", b"all:\n", "text in utf-8", ("all:",)),
    ],
)
def test_other_text_is_previewed_by_its_first_lines(
    tmp_path: Path, name: str, content: bytes, kind: str, lines: tuple[str, ...] | None
) -> None:
    preview = seen(tmp_path, name, content)
    assert (preview.kind, preview.tables) == (kind, ())
    assert preview.lines == lines or lines is None
    assert len(to_text(preview)) <= 1500


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0", "PNG file"),
        ("a.csv", b"", "empty file"),
        ("a.csv", b"a,b\n\0\0", "CSV file"),
        ("data", b"\xff\xfe\xff\0\xdc\xd8", "binary file"),
    ],
)
def test_a_binary_file_is_described_by_name_and_size(
    tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    preview = seen(tmp_path, name, content)
    assert preview == Seen(name, len(content), kind)


# ---------------------------------------------------------------- where it lies


def test_a_file_is_looked_up_below_the_root_and_hashed(tmp_path: Path) -> None:
    (tmp_path / "shared" / "三月").mkdir(parents=True)
    (tmp_path / "shared" / "三月" / "销售.csv").write_bytes(b"a,b\n")
    file, real = find_input(tmp_path, "三月/销售.csv")
    assert (file.name, file.path, file.size_bytes) == ("销售.csv", "三月/销售.csv", 4)
    assert file.sha256 == hashlib.sha256(b"a,b\n").hexdigest()
    assert real == (tmp_path / "shared" / "三月" / "销售.csv").resolve()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing.csv", "No such file"),
        ("../outside.csv", "no path below"),
        ("sub/../../outside.csv", "no path below"),
        ("/etc/hostname", "no path below"),
        ("", "no path below"),
        (".", "no path below"),
        ("a\0b", "no path below"),
        ("out.csv", "leads out"),
        ("folder-out/outside.csv", "leads out"),
        ("sub", "not a regular file"),
        ("pipe", "not a regular file"),
        ("loop", "cannot be read"),
        ("two\nlines.csv", "cannot be shown"),
    ],
)
def test_a_path_that_is_no_file_of_the_root_is_refused(tmp_path: Path, path: str, words: str) -> None:
    root = tmp_path / "inputs" / "shared"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "outside.csv").write_text("x")
    (root / "out.csv").symlink_to(tmp_path / "outside.csv")
    (root / "folder-out").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    with pytest.raises(TaskError, match=words):
        find_input(tmp_path / "inputs", path)


def test_a_link_within_the_root_is_followed(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.csv").write_text("x")
    (tmp_path / "shared" / "b.csv").symlink_to("a.csv")
    file, real = find_input(tmp_path, "b.csv")
    assert (file.name, real.name) == ("b.csv", "a.csv")


# ---------------------------------------------------------------- rows of code tasks


def row(**more: Any) -> dict[str, Any]:
    return {"instruction": "按城市汇总", **more}


def test_a_row_gets_its_files_its_preview_and_places_for_its_runs(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.csv").write_text("城市,值\n北京,1\n")
    (tmp_path / "shared" / "b.log").write_text("<b>GET</b>\n")
    given = row(inputs=["a.csv", "b.log"], output_files=["图表.png"], note="kept")
    filled = CodeTasks(CONFIG, tmp_path).fill(given)
    assert [file.name for file in inputs_of(filled)] == ["a.csv", "b.log"]
    assert filled[SCHEMA_KEY].startswith("a.csv: CSV")
    assert "\n\nb.log: LOG text" in filled[SCHEMA_KEY]
    assert "&lt;b&gt;GET" in filled[PREVIEW_KEY]
    assert filled[OUTPUTS_KEY] == ["图表.png"]
    assert {key: filled[key] for key in NO_RUN} == NO_RUN == {
        "run": "", "run_status": "", "run_output": "", "run_charts": [], "run_files": "",
    }  # fmt: skip
    assert filled["note"] == "kept"
    json.dumps(filled)
    assert CodeTasks(CONFIG, tmp_path).fill(filled) == filled  # as an export of the project has it


def test_a_cell_of_a_csv_names_several_files(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.csv").write_text("x\n1\n")
    (tmp_path / "shared" / "b.csv").write_text("x\n1\n")
    filled = CodeTasks(CONFIG, tmp_path).fill(row(inputs="a.csv; b.csv", output_files="out.csv;图.png"))
    assert [file.path for file in inputs_of(filled)] == ["a.csv", "b.csv"]
    assert filled[OUTPUTS_KEY] == ["out.csv", "图.png"]


def test_a_row_without_files_is_a_code_task_too(tmp_path: Path) -> None:
    filled = CodeTasks(CONFIG, None).fill(row())
    assert (filled[INPUTS_KEY], filled[PREVIEW_KEY], filled["run_charts"]) == ([], "", [])
    assert OUTPUTS_KEY not in filled


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"inputs": ["x/a.csv", "a.csv"]}, "Two inputs are called 'a.csv'"),
        ({"inputs": {"a": 1}}, "not a list of paths"),
        ({"inputs": [1]}, "no path"),
        ({"inputs": [{"name": "a.csv"}]}, "no path"),
        ({"inputs": ["b.csv"]}, "cannot be read"),
        ({"output_files": ["../a.csv"]}, "outside of the run's folder"),
        ({"output_files": ["/a.csv"]}, "outside of the run's folder"),
        ({"output_files": [""]}, "no path"),
    ],
)
def test_a_bad_row_is_a_task_error(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    (tmp_path / "shared" / "x").mkdir(parents=True)
    (tmp_path / "shared" / "x" / "a.csv").write_text("1")
    (tmp_path / "shared" / "a.csv").write_text("1")
    with pytest.raises(TaskError, match=words):
        CodeTasks(CONFIG, tmp_path).fill(row(**more))


def test_without_an_input_root_files_are_a_setup_error() -> None:
    with pytest.raises(SetupError, match="no input root"):
        CodeTasks(CONFIG, None).fill(row(inputs=["a.csv"]))


def test_a_config_has_code_tasks_where_it_shows_files_or_runs() -> None:
    assert CodeTasks(CONFIG, None).expected
    assert CodeTasks('<View><HyperText name="p" value="$run_status"/></View>', None).expected
    plain = CodeTasks('<View><Text name="t" value="$running"/><Text name="u" value="$text"/></View>', None)
    assert not plain.expected
    assert plain.fill({"inputs": "a key of another's"}) == {"inputs": "a key of another's"}
