"""Measure speed and memory as ratios within this run, and write figures, raw samples and a plot.

    engine   through /predict against the same prompts sent straight to vLLM, at 1, 8, 32 and 64 at once;
             one call alone; the prefix cache; tasks in turn through the plain OpenAI client
    memory   peak of prelabel at 1,000 and 100,000 tasks
    tasks    import and sync against the SDK's own calls
    sync     a first sync of a large project, and one with nothing new, against all other ways to read it
    examples whether corrections in the prompt make drafts better, on held-out generated complaints
    scores   whether a draft's score tells that it is right, on held-out generated tasks
    sandbox  a start, a plot and re-runs in the sandbox against a subprocess for each
    circle   corrections against accuracy: adapters trained on tasks in the order of scripts/next_tasks, and
             on as many in random order; needs the environment `train`

Everything is real but what `memory` stands on (fakes that hold nothing per task). Close other programs
first: a busy machine makes figures, not errors. All of it takes about 70 minutes on 2 cores. Steps of
`circle` stay in OUT/circle; remove that to measure it anew.

    scripts/bench --out bench
    scripts/bench --out bench --only engine --pairs 3
"""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from draftloop.cli import servers
from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import err, out, plain_errors
from draftloop.errors import SetupError
from draftloop.support.environments import MODELS
from scripts.benchmarks import circle, engine, examples, memory, plot, sandbox, scores, sync, tasks

cli = app()
_LORA_RANK = 16  # of the adapters that vLLM takes
Measured = tuple[dict[str, float], dict[str, Any]]


class Sizes(NamedTuple):
    """Sizes of the measurements, and the folder of files that stay between runs."""

    pairs: int
    large: int
    synced: int
    kept: Path


class Subject(StrEnum):
    """A subject that can be measured by itself."""

    ENGINE = "engine"
    MEMORY = "memory"
    TASKS = "tasks"
    SYNC = "sync"
    SCORES = "scores"
    SANDBOX = "sandbox"
    EXAMPLES = "examples"
    CIRCLE = "circle"


@cli.command(cls=Verb, help=__doc__)
def main(
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for bench.json and the plots.")],
    only: Annotated[list[Subject] | None, typer.Option(help="Only this subject; may be repeated.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Interleaved pairs; the median counts.")] = 5,
    large: Annotated[int, typer.Option(min=1000, help="Tasks of the large memory run.")] = 100_000,
    tasks_synced: Annotated[int, typer.Option("--tasks", min=10, help="Tasks of the large sync.")] = 25_000,
) -> None:
    """Run the verb."""
    with plain_errors("Run the same command again; subjects measured before stay in bench.json."):
        out_folder.mkdir(parents=True, exist_ok=True)
        file = out_folder / "bench.json"
        kept = _read(file)
        for subject in only or Subject:
            scratch = Path(tempfile.mkdtemp(prefix="draftloop-bench-"))
            try:
                figures, samples = _MEASURES[subject](
                    scratch, Sizes(pairs, large, tasks_synced, out_folder / subject.value)
                )
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            kept |= {name: round(figure, 4) for name, figure in figures.items()}
            kept["samples"] = kept.get("samples", {}) | {subject.value: samples}
            kept["machine"] = {"cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()}
            file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            for name, figure in figures.items():
                out.print(f"{name} = {figure:.3f}")
        if "engine" in kept["samples"]:
            plot.engine(kept["samples"]["engine"], out_folder / "engine.png")
        if "scores" in kept["samples"]:
            scores.draw(kept["samples"]["scores"], out_folder / "scores.png")
        if "examples" in kept["samples"]:
            examples.draw(kept["samples"]["examples"], out_folder / "examples.png")
        if "circle" in kept["samples"]:
            circle.draw(kept["samples"]["circle"], out_folder / "circle.png")
        out.print(f"Next: look at {file} and the plots beside it")


def _say(words: str) -> None:
    err.print(words, highlight=False)


def _engine(scratch: Path, sizes: Sizes) -> Measured:
    model = MODELS / engine.MODEL
    with servers.start_vllm(model, served_name=engine.MODEL) as vllm:
        return engine.measure(scratch, vllm.url, sizes.pairs, _say)


def _scores(scratch: Path, sizes: Sizes) -> Measured:
    del scratch, sizes
    model = MODELS / engine.MODEL
    with servers.start_vllm(model, served_name=engine.MODEL) as vllm:
        return scores.measure(vllm.url, engine.MODEL, 300, _say)


def _examples(scratch: Path, sizes: Sizes) -> Measured:
    del sizes
    model = MODELS / engine.MODEL
    with servers.start_vllm(model, served_name=engine.MODEL) as vllm:
        return examples.measure(scratch, vllm.url, engine.MODEL, _say)


def _memory(scratch: Path, sizes: Sizes) -> Measured:
    return memory.measure(scratch, {"1k": 1000, "100k": sizes.large}, _say)


def _tasks(scratch: Path, sizes: Sizes) -> Measured:
    return tasks.measure(scratch, min(sizes.pairs, 3), 10_000, 5_000, _say)


def _sync(scratch: Path, sizes: Sizes) -> Measured:
    return sync.measure(scratch, sizes.synced, min(sizes.pairs, 2), _say)


def _sandbox(scratch: Path, sizes: Sizes) -> Measured:
    return sandbox.measure(scratch, sizes.pairs, _say)


def _circle(scratch: Path, sizes: Sizes) -> Measured:
    del scratch
    model = MODELS / engine.MODEL
    with servers.start_vllm(model, served_name=engine.MODEL, lora_rank=_LORA_RANK) as vllm:
        return circle.measure(sizes.kept.resolve(), vllm.url, engine.MODEL, _say)


_MEASURES: dict[Subject, Callable[[Path, Sizes], Measured]] = {
    Subject.ENGINE: _engine,
    Subject.MEMORY: _memory,
    Subject.TASKS: _tasks,
    Subject.SYNC: _sync,
    Subject.SCORES: _scores,
    Subject.SANDBOX: _sandbox,
    Subject.EXAMPLES: _examples,
    Subject.CIRCLE: _circle,
}


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetupError(f"{file} is not JSON.", hint="Remove it, or choose another --out.") from error
    if not isinstance(figures, dict):
        raise SetupError(f"{file} is not an object.", hint="Remove it, or choose another --out.")
    return figures


if __name__ == "__main__":
    cli()
