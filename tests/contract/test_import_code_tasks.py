"""import_tasks of code tasks, the verb itself: files are referenced, bad rows named, none imported twice."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from draftloop.runs.run import NO_RUN, inputs_of
from tests.fake_label_studio import FakeLabelStudio, fake_label_studio
from tests.verbs import run_here

CONFIG = """<View>
  <Text name="instruction" value="$instruction"/>
  <HyperText name="preview" value="$input_preview"/>
  <HyperText name="status" value="$run_status"/>
  <HyperText name="output" value="$run_output"/>
  <Image name="charts" valueList="$run_charts"/>
  <HyperText name="files" value="$run_files"/>
  <TextArea name="code" toName="instruction"/>
</View>"""


@dataclass(frozen=True)
class Office:
    """A project without tasks, an input root, and the variables of an admin's shell."""

    studio: FakeLabelStudio
    root: Path
    env: dict[str, str]

    def bring(self, rows: list[dict[str, Any]], *options: object) -> tuple[int, str, str]:
        file = self.root.parent / "rows.jsonl"
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        return run_here(self.env, "import_tasks", "--project", 1, file, *options)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    root = tmp_path / "inputs"
    (root / "shared").mkdir(parents=True)
    (root / "shared" / "销售.csv").write_text("城市,销售额\n北京,12\n上海,8\n", encoding="gb18030")
    with fake_label_studio(CONFIG, 0, lambda _: {}) as studio:
        env = {
            "LABEL_STUDIO_URL": studio.url,
            "LABEL_STUDIO_API_KEY": "a-token",
            "INPUT_ROOT": str(root),
        }
        yield Office(studio, root, env)


def test_a_task_has_its_files_their_preview_and_places_for_its_runs(office: Office) -> None:
    wanted = {"instruction": "按城市画图", "inputs": ["销售.csv"], "output_files": ["图.png"]}
    code, out, err = office.bring([wanted])
    assert code == 0, err
    assert "imported 1 of 1 rows" in out
    (data,) = office.studio.imported.values()
    (file,) = inputs_of(data)
    assert (file.name, file.path, len(file.sha256)) == ("销售.csv", "销售.csv", 64)
    assert file.size_bytes == (office.root / "shared" / "销售.csv").stat().st_size
    assert "- 城市 (text): 北京, 上海" in data["input_schema"]
    assert "<td>北京</td>" in data["input_preview"]
    assert {key: data[key] for key in NO_RUN} == NO_RUN
    assert data["output_files"] == ["图.png"]
    assert sorted(path.name for path in (office.root / "shared").iterdir()) == ["销售.csv"]


def test_a_run_makes_no_new_task_of_it_and_a_changed_file_does(office: Office) -> None:
    wanted = {"instruction": "按城市画图", "inputs": ["销售.csv"]}
    assert office.bring([wanted, wanted])[0] == 0
    (number,) = office.studio.imported
    ran = {"run": "k", "run_status": "<b>ok</b>", "run_output": "1", "run_charts": ["/data/a.png"]}
    office.studio.imported[number] = {**office.studio.imported[number], **ran}
    code, out, _ = office.bring([wanted])
    assert (code, len(office.studio.imported)) == (0, 1)
    assert "1 were there already" in out
    (office.root / "shared" / "销售.csv").write_text("城市,销售额\n北京,13\n", encoding="utf-8")
    assert office.bring([wanted])[0] == 0
    assert len(office.studio.imported) == 2


def test_bad_rows_are_named_with_their_line_and_the_others_imported(office: Office) -> None:
    (office.root.parent / "secret.csv").write_text("x")
    (office.root / "shared" / "link.csv").symlink_to(office.root.parent / "secret.csv")
    rows: list[dict[str, Any]] = [
        {"instruction": "a", "inputs": ["missing.csv"]},
        {"instruction": "b", "inputs": ["../secret.csv"]},
        {"instruction": "c", "inputs": ["link.csv"]},
        {"inputs": ["销售.csv"]},
        {"instruction": "e", "inputs": ["销售.csv"]},
        {"instruction": "f"},
    ]
    code, out, err = office.bring(rows)
    assert code == 1
    for words in (
        "rows.jsonl line 1: Input 'missing.csv' cannot be read: No such file or directory in projects/1",
        "rows.jsonl line 2: Input '../secret.csv' is no path below the input root",
        "rows.jsonl line 3: Input 'link.csv' leads out of the input root by a link",
        "rows.jsonl line 4: key 'instruction' is missing",
    ):
        assert words in err
    assert "imported 2 of 6 rows" in out
    assert [data["instruction"] for data in office.studio.imported.values()] == ["e", "f"]


def test_a_csv_of_rows_needs_only_what_people_write(office: Office) -> None:
    file = office.root.parent / "rows.csv"
    file.write_text("instruction,inputs,output_files\n画图,销售.csv,图.png;表.csv\n", encoding="utf-8")
    code, _, err = run_here(office.env, "import_tasks", "--project", 1, file)
    assert code == 0, err
    (data,) = office.studio.imported.values()
    assert data["output_files"] == ["图.png", "表.csv"]


def test_without_an_input_root_nothing_is_imported_and_the_option_named(office: Office) -> None:
    del office.env["INPUT_ROOT"]
    code, _, err = office.bring([{"instruction": "a", "inputs": ["销售.csv"]}])
    assert code == 1
    assert "--input-root" in err
    assert not office.studio.imported
    code, _, err = office.bring([{"instruction": "a", "inputs": ["销售.csv"]}], "--input-root", office.root)
    assert code == 0, err
