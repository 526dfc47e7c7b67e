"""Dataset folders for trainers to load, written as sync writes them."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demo.corpus import INSTRUCTIONS, Split, generate
from draftloop.cli import servers
from draftloop.dataset.corpus import DatasetOptions, Settled
from draftloop.dataset.folder import Lines
from draftloop.dataset.formats import FORMATS
from draftloop.dataset.records import ProjectSource, State, append_record, index_record
from draftloop.dataset.records import write as write_dataset
from draftloop.dataset.sample import Sample
from draftloop.dataset.sync import count_tokens
from draftloop.model.tokens import Tokens
from draftloop.prompting.cases import Cases
from draftloop.support.environments import MODELS, ROOT, find_environment
from tests.conftest import installed
from tests.samples import written_out


def write(folder: Path, *, code: bool, files: str = "jsonl") -> Path:
    """Write twelve samples (nine for training) in every format and give the folder."""
    counter = Tokens(MODELS / "tiny-qwen3")
    samples = [count_tokens(sample, counter) for sample in written_out(code=code)]
    return store(folder, samples, files=files)


def corrected(folder: Path, count: int, *, case: str = "complaint", split: Split = "train") -> Path:
    """Write that many samples of a demo case, one in ten held out, most of them corrected drafts.

    Args:
        folder: Where to.
        count: How many.
        case: One of the embedded model's.
        split: `held_out` for texts of other templates and words than the model was trained with.
    """
    return store(folder, list(corrections(case, count, split)))


def corrections(case: str, count: int, split: Split = "train") -> Iterator[Sample]:
    """Return samples of a demo case, one in ten held out, most of them corrected drafts."""
    labelling = Cases(ROOT / "label_config").get(case).labelling
    texts = generate(case, split, count, 0)
    before: dict[str, Any] = {}
    for number, text in enumerate(texts):
        value = {key: part for key, part in text.value.items() if part is not None}
        drafted: dict[str, Any] = {"verdict": "written"}
        if number % 4 and before != value:  # the draft answered another text
            drafted = {"verdict": "corrected", "draft": before, "draft_target": labelling.encode(before)}
        before = value
        yield Sample(
            project=1,
            task=number,
            annotation=1000 + number,
            case=case,
            input={"text": text.text},
            system=INSTRUCTIONS[case],
            instruction=text.text,
            value=value,
            target=labelling.encode(value),
            group=f"{number:016x}",
            split="test" if number % 10 == 9 else "train",
            metadata={"config_hash": "abc"},
            **drafted,
        )


def store(folder: Path, samples: Sequence[Sample], *, files: str = "jsonl") -> Path:
    """Write samples with a split in every format and give the folder."""
    options = DatasetOptions(formats=tuple(form.name for form in FORMATS), files=files)
    splits = {sample.annotation: sample.split for sample in samples if sample.split}
    source = ProjectSource("Project", "2026-01-01T00:00:00Z", samples[0].case, "0" * 16, "0" * 16, None)
    folder.mkdir(parents=True)
    with Lines(folder) as lines:
        rows = {sample.annotation: append_record(lines, index_record(sample)) for sample in samples}
        state = State({samples[0].project: source}, options=options, rows=rows)
        write_dataset(folder, lines, state, Settled(splits, {}))
    return folder


def load_with(environment: str, script: str, *arguments: object) -> None:
    """Run a script of tests/consumers in an environment of its own; it has to end well."""
    with installed():
        python = find_environment(environment) / "bin" / "python"
    offline = {
        "DO_NOT_TRACK": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(arguments[1]),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": servers.PYTHONPATH,
    }
    command = [str(python), "-P", f"tests/consumers/{script}", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **offline},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
