"""import_tasks: every kind of file, nothing twice, bad rows reported and the others imported."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftloop.labelstudio import LabelStudio, Project
from tests.conftest import LabelStudioServer
from tests.verbs import environment, kill, run, start

CONFIG = (Path(__file__).parents[2] / "label_config" / "complaint" / "config.xml").read_text(encoding="utf-8")
ROWS = [{"text": f'张三 {n} 投诉😀 "引号", 逗号;\n第二行', "source": f"s{n}"} for n in range(40)]


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as opened:
        yield opened


@pytest.fixture
def project(studio: LabelStudio) -> Project:
    return studio.create_project(f"import {time.time_ns()}", CONFIG)


@pytest.fixture
def env(label_studio: LabelStudioServer, tmp_path: Path) -> dict[str, str]:
    return environment(label_studio, tmp_path)


def csv_of(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [delimiter.join(rows[0])]
    lines += [delimiter.join(map(quoted, row.values())) for row in rows]
    return "\r\n".join(lines) + "\r\n"


def texts(studio: LabelStudio, project: Project) -> list[str]:
    return [task["data"]["text"] for task in studio.tasks(project)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", csv_of(ROWS)),
        ("excel.csv", "\ufeff" + csv_of(ROWS, ";")),
        ("tabs.csv", csv_of(ROWS, "\t")),
        ("rows.json", json.dumps(ROWS)),
        ("export.json", json.dumps([{"id": 5, "data": row, "annotations": []} for row in ROWS])),
        ("rows.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
    ],
)
def test_every_kind_of_file_gives_the_same_tasks(
    name: str, content: str, studio: LabelStudio, project: Project, env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8", newline="")
    code, out, err = run(env, "import_tasks", "--project", project.id, file)
    assert code == 0, err
    assert f"imported {len(ROWS)} of {len(ROWS)} rows" in out
    assert f"draftloop prelabel --project {project.id}" in out
    assert [task["data"] for task in studio.tasks(project)] == [{**row, "draft_status": ""} for row in ROWS]


def test_the_annotations_of_an_export_are_imported_with_their_tasks(
    studio: LabelStudio, project: Project, env: dict[str, str], tmp_path: Path
) -> None:
    region = {"from_name": "name", "to_name": "text", "type": "textarea", "value": {"text": ["张三"]}}
    skipped = {"result": [], "was_cancelled": True, "completed_by": {"email": "nobody@example.com"}}
    rows = [
        {
            "id": 77,
            "data": ROWS[0],
            "annotations": [{"id": 5, "result": [region], "completed_by": 99, "lead_time": 2.5}],
        },
        {"id": 78, "data": ROWS[1], "annotations": [skipped], "predictions": [{"result": [region]}]},
        {"id": 79, "data": ROWS[2]},
    ]
    file = tmp_path / "export.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    code, out, err = run(env, "import_tasks", "--project", project.id, file)
    assert code == 0, err
    assert "with 2 annotations, which are now yours" in out
    assert "the predictions of 1 rows" in out
    annotated = [task["annotations"] for task in studio.tasks(project, full=True)]
    assert [len(annotations) for annotations in annotated] == [1, 1, 0]
    (first,), (second,), _ = annotated
    assert (first["result"], first["lead_time"], first["ground_truth"]) == ([region], 2.5, False)
    assert second["was_cancelled"]


def test_a_row_that_label_studio_refuses_costs_the_others_nothing(
    studio: LabelStudio, env: dict[str, str], tmp_path: Path
) -> None:
    config = """<View><HyperText name="text" value="$text"/>
    <Choices name="pick" toName="text"><Choice value="a"/></Choices></View>"""
    project = studio.create_project(f"refused {time.time_ns()}", config)
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "\n".join(json.dumps({"text": text}) for text in ("<p>one</p>", 5, "two")), encoding="utf-8"
    )
    code, out, err = run(env, "import_tasks", "--project", project.id, file)
    assert code == 1
    assert "rows.jsonl line 2: Label Studio refuses" in err
    assert "imported 2 of 3 rows" in out
    assert texts(studio, project) == ["<p>one</p>", "two"]


def test_rows_that_are_there_or_come_twice_are_skipped(
    studio: LabelStudio, project: Project, env: dict[str, str], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.json"
    first.write_text("\n".join(map(json.dumps, ROWS[:30])), encoding="utf-8")
    second.write_text(
        json.dumps([{**row, "source": "other"} for row in ROWS[20:] + ROWS[39:]]), encoding="utf-8"
    )
    assert run(env, "import_tasks", "--project", project.id, first, "--limit", 10)[0] == 0
    assert len(texts(studio, project)) == 10
    code, out, _ = run(env, "import_tasks", "--project", project.id, first, second)
    assert code == 0
    assert "imported 30 of 51 rows; 10 were there already, 11 twice in the files, 0 bad" in out
    assert texts(studio, project) == [row["text"] for row in ROWS]
    code, out, _ = run(env, "import_tasks", "--project", project.id, first, second)
    assert code == 0
    assert (
        "imported 0 of 51 rows; 50 were there already, 1 twice in the files, 0 bad" in out or "51 were" in out
    )


def test_bad_rows_are_reported_by_line_and_the_others_imported(
    studio: LabelStudio, project: Project, env: dict[str, str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [
        '{"text": "one"}',
        "{broken",
        '{"txt": "two"}',
        "",
        '{"text": " "}',
        "[1]",
        '{"text": "\\ud83d"}',
        '{"text": "whole", "other": "\\ud83d"}',
    ]
    rows.write_text("\n".join([*lines, '{"text": "last"}']), encoding="utf-8")
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("text,who\nthree,1\nfour\nfive,2\n", encoding="utf-8")
    code, out, err = run(env, "import_tasks", "--project", project.id, rows, ragged)
    assert code == 1
    for words in (
        "rows.jsonl line 2: it is not JSON",
        "rows.jsonl line 3: key 'text' is missing",
        "rows.jsonl line 5: 'text' is empty",
        "rows.jsonl line 6: it is no JSON object",
        "line 7: the text under 'text' holds a lone surrogate (half a character)",
        "rows.jsonl line 8: It holds half a character",
        "ragged.csv line 3: it has 1 fields, the header has 2",
    ):
        assert words in err
    assert "imported 4 of 11 rows" in out
    assert texts(studio, project) == ["one", "last", "three", "five"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("wrong.csv", b"a,b\n1,2\n", "no column text"),
        ("gbk.csv", "text\n张三\n".encode("gb18030"), "not UTF-8"),
        ("object.json", b"{}", "not a list"),
        ("broken.json", b"[1,", "cannot be read"),
        ("rows.txt", b"text\n", "neither CSV, JSON nor JSONL"),
        ("empty.csv", b"", "no column text"),
    ],
)
def test_a_bad_file_imports_nothing_and_says_why(
    name: str,
    content: bytes,
    words: str,
    studio: LabelStudio,
    project: Project,
    env: dict[str, str],
    tmp_path: Path,
) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / name
    good.write_text('{"text": "good"}')
    bad.write_bytes(content)
    code, _, err = run(env, "import_tasks", "--project", project.id, good, bad)
    assert code == 1
    assert words in err
    assert "Traceback" not in err
    assert texts(studio, project) == []


def test_wrong_usage_exits_with_2_and_help_shows_examples(env: dict[str, str]) -> None:
    assert run(env, "import_tasks", "nowhere.csv")[0] == 2
    code, out, _ = run(env, "import_tasks", "--help")
    assert code == 0
    assert "\n      draftloop import-tasks --project 7 complaints.csv\n" in out


def test_killed_midway_and_run_again_every_row_is_there_once(
    studio: LabelStudio, project: Project, env: dict[str, str], tmp_path: Path
) -> None:
    rows = [f"text {number}" for number in range(9000)]
    file = tmp_path / "many.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in rows), encoding="utf-8")
    halted = []
    for threshold in (1, 4001):
        process = start(env, "import_tasks", "--project", project.id, file)
        while process.poll() is None and studio.count_tasks(project) < threshold:
            time.sleep(0.02)
        kill(process)
        halted.append(studio.count_tasks(project))
    assert 0 < halted[0] < 9000
    code, _, err = run(env, "import_tasks", "--project", project.id, file)
    assert code == 0, err
    assert sorted(texts(studio, project)) == sorted(rows)
