"""What real Label Studio shows decides which runs stay."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftloop.execution.artifacts import Artifacts
from draftloop.labelstudio import LabelStudio
from draftloop.runs.job import Attempt
from draftloop.runs.run import RUN_KEY, Run
from tests import verbs
from tests.code_runs import SALES, attempt, run, write
from tests.conftest import LabelStudioServer

CONFIG = '<View><Text name="text" value="$text"/><TextArea name="code" toName="text"/></View>'
INPUTS = [{"name": SALES.name, "path": SALES.path, "size_bytes": SALES.size_bytes, "sha256": SALES.sha256}]


@pytest.fixture
def studio(label_studio: LabelStudioServer) -> Iterator[LabelStudio]:
    with LabelStudio(label_studio.url, label_studio.token) as opened:
        yield opened


def test_runs_that_no_task_needs_go_and_all_others_stay(
    studio: LabelStudio, label_studio: LabelStudioServer, tmp_path: Path
) -> None:
    store = Artifacts(str(tmp_path / "kept"))

    def kept(code: str) -> Run:
        files = write(tmp_path / "left", {f"{code}.txt": code.encode()})
        store.keep(tmp_path / "left", files)
        tried: Attempt = attempt(code, files=files)
        made = run(tried)
        store.put_run(made)
        return made

    shown, submitted, unused = kept("shown"), kept("submitted"), kept("unused")
    for path in (tmp_path / "kept").rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 40 * 86400,) * 2)
    young = kept("young")
    rows = [{"text": "x", "inputs": INPUTS, RUN_KEY: shown.key}, {"text": "y", "inputs": INPUTS, RUN_KEY: ""}]
    project = studio.create_project("Runs that are used", CONFIG)
    ids = next(iter(studio.import_tasks(project, rows)))
    region = {"from_name": "code", "to_name": "text", "type": "textarea", "value": {"text": ["submitted\n"]}}
    studio.submit_annotation(ids[1], [region])

    env = verbs.environment(label_studio, tmp_path, ARTIFACTS_URL=store.url)
    code, out, err = verbs.run(env, "artifacts", "collect", "--dry-run")
    assert code == 0, err
    assert "would remove 1 runs and 1 files" in out
    assert store.run(unused.key) == unused
    code, out, err = verbs.run(env, "artifacts", "collect")
    assert code == 0, err
    assert "3 runs and 3 files stay" in out
    assert "removed 1 runs and 1 files" in out
    assert store.run(unused.key) is None
    for made in (shown, submitted, young):
        assert store.run(made.key) == made
        assert store.size(made.last.files[0].sha256)

    empty = studio.create_project("No runs at all", CONFIG)
    code, out, err = verbs.run(env, "artifacts", "collect", "--project", empty.id)
    assert (code, out) == (1, "")
    assert "every run would go" in " ".join(err.split())
    assert store.run(shown.key) == shown
