"""Dataset folders for trainers to load, written as sync writes them."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

from backend.core.corpus import Options, Settled
from backend.core.formats import FORMATS
from backend.core.sample import conversation, tools
from backend.edge.folder import store
from backend.edge.tokens import Tokens
from backend.sync import State, _counts, _files
from scripts import servers
from tests.conftest import installed
from tests.samples import written_out


def write(folder: Path, *, code: bool, files: str = "jsonl") -> Path:
    """Write twelve samples (nine for training) in every format and give the folder."""
    options = Options(formats=tuple(form.name for form in FORMATS), files=files)
    counter = Tokens(servers.ROOT / "models" / "tiny-qwen3")
    samples = (
        replace(sample, tokens=counter.count(conversation(sample), tools(sample)))
        for sample in written_out(code=code)
    )
    settled = Settled(tuple(samples), ())
    folder.mkdir(parents=True)
    store(folder, *_files(State(options=options), settled, [], _counts(settled, [])))
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
