"""Dataset folders for trainers to load, written as sync writes them."""

import os
import subprocess
from pathlib import Path

from backend.core.corpus import Options, Settled
from backend.core.formats import FORMATS
from backend.edge.folder import Lines
from backend.edge.tokens import Tokens
from backend.records import State, put, recorded
from backend.records import write as write_dataset
from backend.sync import counted
from scripts import servers
from tests.conftest import installed
from tests.samples import written_out


def write(folder: Path, *, code: bool, files: str = "jsonl") -> Path:
    """Write twelve samples (nine for training) in every format and give the folder."""
    options = Options(formats=tuple(form.name for form in FORMATS), files=files)
    counter = Tokens(servers.ROOT / "models" / "tiny-qwen3")
    samples = [counted(sample, counter) for sample in written_out(code=code)]
    splits = {sample.annotation: sample.split for sample in samples if sample.split}
    folder.mkdir(parents=True)
    with Lines(folder) as lines:
        rows = {sample.annotation: put(lines, recorded(sample)) for sample in samples}
        write_dataset(folder, lines, State(options=options, rows=rows), Settled(splits, {}))
    return folder


def load_with(environment: str, script: str, *arguments: object) -> None:
    """Run a script of tests/consumers in an environment of its own; it has to end well."""
    with installed():
        python = servers.environment(environment) / "bin" / "python"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(arguments[1]), "PYTHONPATH": str(servers.ROOT)}
    command = [str(python), "-P", f"tests/consumers/{script}", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=servers.ROOT,
        env={**os.environ, **offline},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
