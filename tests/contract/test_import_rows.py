"""import_tasks: one odd row of a file is named with its line, and the others are imported."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from draftloop.support.environments import ROOT
from tests.fake_label_studio import FakeLabelStudio, fake_label_studio
from tests.verbs import run_here

CONFIG = (ROOT / "label_config/sentiment/config.xml").read_text(encoding="utf-8")
Bring = Callable[[str, str], tuple[int, str, str]]


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with fake_label_studio(CONFIG, 0, lambda _: {}) as fake:
        yield fake


@pytest.fixture
def bring(studio: FakeLabelStudio, tmp_path: Path) -> Bring:
    env = {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": "a-token", "COLUMNS": "300"}

    def import_file(name: str, content: str) -> tuple[int, str, str]:
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        code, out, err = run_here(env, "import_tasks", "--project", 1, tmp_path / name)
        assert "Traceback" not in err
        return code, out, " ".join(err.split())

    return import_file


def texts(studio: FakeLabelStudio) -> list[Any]:
    return [data["text"] for data in studio.imported.values()]


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ('{"text": "bad", "price": NaN}', "'price' holds NaN, which is no JSON"),
        ('{"text": "bad", "price": -Infinity}', "'price' holds Infinity"),
        ('{"text": "bad", "price": 1e999}', "'price' holds Infinity, or a number that is too large"),
        ('{"text": "bad", "list": [{"deep": [1, NaN]}]}', "'list' holds NaN"),
        ('{"data": {"text": "bad", "price": NaN}}', "'data' holds NaN"),
        ('{"text": "bad", "text": "worse"}', "it has the key 'text' twice"),
        ('{"data": {"text": "bad", "text": "worse"}}', "'data' holds an object with the key 'text' twice"),
        ('{"text": "bad", "x": ' + "[" * 150 + "]" * 150 + "}", "its data are nested deeper than 100 levels"),
        ('{"text": NaN}', "'text' holds NaN"),
        ('{"text": null}', "key 'text' is missing"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_an_odd_row_is_named_with_its_line(
    kind: str, odd: str, words: str, studio: FakeLabelStudio, bring: Bring
) -> None:
    rows = ['{"text": "one"}', odd, '{"text": "two", "price": null}']
    content = "\n".join(rows) if kind == "jsonl" else f"[{','.join(rows)}]"
    code, out, err = bring(f"rows.{kind}", content)
    assert (code, texts(studio)) == (1, ["one", "two"])
    assert f"rows.{kind} {'line' if kind == 'jsonl' else 'row'} 2: {words}" in err
    assert "imported 2 of 3 rows" in out


@pytest.mark.parametrize(
    "odd", ["[" * 100_000, '{"text": ' + "[" * 5000 + "]" * 5000 + "}", '{"n": ' + "1" * 5000 + "}"]
)
def test_what_no_parser_takes_is_one_line_of_jsonl_and_all_of_json(
    odd: str, studio: FakeLabelStudio, bring: Bring
) -> None:
    code, _, err = bring("rows.jsonl", f'{{"text": "one"}}\n{odd}\n{{"text": "two"}}')
    assert (code, texts(studio)) == (1, ["one", "two"])
    assert "rows.jsonl line 2: it is n" in err
    code, _, err = bring("rows.json", f'[{{"text": "three"}},{odd}]')
    assert (code, len(studio.imported)) == (1, 2)
    assert "rows.json cannot be read" in err


@pytest.mark.parametrize("header", ["text,text", "text,who,who", 'who,"text",text'])
def test_two_columns_of_one_name_are_refused_and_nothing_is_imported(
    header: str, studio: FakeLabelStudio, bring: Bring
) -> None:
    code, _, err = bring("rows.csv", f"{header}\n{','.join('abc'[: header.count(',') + 1])}\n")
    assert (code, texts(studio)) == (1, [])
    assert "2 times" in err
    assert "Rename or remove" in err


def test_a_comma_at_the_end_of_the_header_is_named_and_left_out(
    studio: FakeLabelStudio, bring: Bring
) -> None:
    code, out, err = bring("rows.csv", "text,who,\none,a,\ntwo,b,stray\nthree,c,\n")
    assert code == 1
    assert "rows.csv line 1: 1 of 3 columns have no name and are left out" in err
    assert "rows.csv line 3: it has 'stray' in a column without a name" in err
    assert [(data["text"], data["who"], len(data)) for data in studio.imported.values()] == [
        ("one", "a", 3),
        ("three", "c", 3),
    ]
    assert "imported 2 of 3 rows" in out


def test_a_broken_line_of_csv_is_named(studio: FakeLabelStudio, bring: Bring) -> None:
    code, _, err = bring("rows.csv", 'text\none\n"two" x\n')
    assert (code, texts(studio)) == (1, [])
    assert "cannot be read at line 3" in err


def test_an_export_keeps_its_annotations_and_says_what_it_loses(
    studio: FakeLabelStudio, bring: Bring
) -> None:
    region = {
        "from_name": "sentiment",
        "to_name": "text",
        "type": "choices",
        "value": {"choices": ["positive"]},
    }
    right = {
        "id": 5,
        "result": [region],
        "completed_by": 77,
        "lead_time": 3.5,
        "ground_truth": True,
        "task": 1,
    }
    skipped = {"result": [], "was_cancelled": True, "completed_by": {"id": 1, "email": "a@example.com"}}
    wrong = {"result": [{**region, "value": {"text": [None]}}]}
    rows = [
        {"id": 1, "data": {"text": "one"}, "annotations": [right, skipped], "predictions": [{"result": []}]},
        {"id": 2, "data": {"text": "two"}, "annotations": [wrong, right]},
        {"id": 3, "data": {"text": "three"}, "annotations": [], "predictions": []},
        {"id": 4, "data": {"text": "one"}, "annotations": [right]},
    ]
    code, out, err = bring("export.json", json.dumps(rows))
    assert code == 1
    assert texts(studio) == ["one", "two", "three"]
    kept = {"result": [region], "ground_truth": True, "lead_time": 3.5}
    assert list(studio.brought.values()) == [
        [kept, {"result": [], "ground_truth": False, "was_cancelled": True}],
        [kept],
        [],
    ]
    assert "export.json row 2: an annotation, for it cannot be read: Control 'sentiment'" in err
    assert "export.json row 4: its annotations, for the task is twice in the files" in err
    assert "with 3 annotations, which are now yours" in out
    assert "not imported: the predictions of 1 rows" in out


def test_rows_that_label_studio_refuses_are_named_and_the_others_imported(
    studio: FakeLabelStudio, bring: Bring
) -> None:
    studio.refuses = lambda data: data["text"] in ("3", "4", "70")
    code, out, err = bring(
        "rows.jsonl", "\n".join(json.dumps({"text": str(number)}) for number in range(100))
    )
    assert code == 1
    assert texts(studio) == [str(number) for number in range(100) if number not in (3, 4, 70)]
    for line in (4, 5, 71):
        assert f"rows.jsonl line {line}: Label Studio refuses 1 tasks for project 1" in err
    assert "imported 97 of 100 rows" in out
    studio.refuses = lambda _: True
    code, _, err = bring("rows.jsonl", "\n".join(json.dumps({"text": f"x{number}"}) for number in range(300)))
    assert (code, len(studio.imported)) == (1, 97)
    assert "Label Studio refuses 100 rows, the last one rows.jsonl line 100" in err
