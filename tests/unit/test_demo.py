"""The demo's circle: what its parts make without a server."""

import subprocess
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import orjson

from demo.projects.flywheel import plot, shuffled
from demo.projects.stage import Demo
from draftloop.training.rows import open_dataset
from tests.datasets import corrected


def test_shuffled_answers_keep_every_question_and_the_manifest(tmp_path: Path) -> None:
    dataset = corrected(tmp_path / "dataset", 40)
    shuffled_once = open_dataset(shuffled(dataset, tmp_path / "shuffled"))
    before, after = (rows(open_dataset(dataset).file("messages")), rows(shuffled_once.file("messages")))
    assert [question for question, _ in before] == [question for question, _ in after]
    assert Counter(answer for _, answer in before) == Counter(answer for _, answer in after)
    moved = sum(one != other for one, other in zip(before, after, strict=True))
    assert moved > len(before) // 2
    tests = open_dataset(dataset).file("messages", held_out=True)
    assert shuffled_once.file("messages", held_out=True).read_bytes() == tests.read_bytes()
    again = open_dataset(shuffled(dataset, tmp_path / "shuffled"))
    assert again.manifest_sha256 == shuffled_once.manifest_sha256


def test_the_plot_has_a_pair_of_bars_for_every_field() -> None:
    before = {"complaint": {"name": 0.5, "email": 1.0}, "<i>": {"sentiment": 0.0}}
    after = {"complaint": {"name": 0.75, "email": 1.0}, "<i>": {"sentiment": 0.875}}
    drawn = ET.fromstring(plot(before, after))
    space = "{http://www.w3.org/2000/svg}"
    bars = [(bar.get("class"), float(bar.get("width", ""))) for bar in drawn.iter(f"{space}rect")]
    assert [kind for kind, _ in bars] == ["before", "after"] * 3
    widest = max(width for _, width in bars)
    shares = [0.5, 0.75, 1.0, 1.0, 0.0, 0.875]
    assert [round(width / widest, 3) for _, width in bars] == shares
    words = [text.text for text in drawn.iter(f"{space}text")]
    assert {"name", "email", "sentiment", "complaint", "<i>", "75", "88"} <= set(words)


def test_the_settings_of_the_demo_reach_a_shell_as_they_are(tmp_path: Path) -> None:
    environment = {"BACKEND_PASSWORD": "a'b $HOME `x`", "MODEL_PROFILE": "compact", "CASES_DIR": "/a b/ö"}
    file = Demo(tmp_path, environment=environment).settings_file()
    assert file.stat().st_mode & 0o077 == 0
    command = f'. {file}; python3 -c "import json, os; print(json.dumps(dict(os.environ)))"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert orjson.loads(done.stdout).items() >= environment.items()


def rows(file: Path) -> list[tuple[str, str]]:
    """Read question and answer of every row."""
    conversations = (orjson.loads(line)["messages"] for line in file.read_bytes().splitlines())
    return [(str(messages[:-1]), messages[-1]["content"]) for messages in conversations]
