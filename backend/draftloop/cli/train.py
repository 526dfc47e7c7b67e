"""Train an adapter (LoRA) for a base model on a dataset that draftloop sync wrote.

Writes a run's folder: adapter/ for vLLM, run.json with all it takes to make it again, loss.png. The loss
covers answers alone, in the very tokens that the served model reads. Ctrl-C or SIGTERM stops after the
step with a checkpoint; --resume goes on there, also after kill -9.

    draftloop train --dataset dataset/ --out runs/complaint-1
    draftloop train --dataset dataset/ --out runs/complaint-1 --resume
    draftloop train --dataset dataset/ --out runs/2 --base path/to/Qwen3-4B --config train.yaml --set epochs=2
    draftloop train --dataset dataset/ --out runs/3 --replay ../flights/dataset:0.5 --dpo

Several GPUs, several machines, and all keys of the recipe: docs/how-to/train.md.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.markup import escape

from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import Meter, err, out, plain_errors
from draftloop.support.environments import MODELS
from draftloop.training.base import open_base
from draftloop.training.recipe import read
from draftloop.training.rows import TrainingCorpus, case_of, gather, open_dataset, open_replay

cli = app()
BEFORE = {  # read when the libraries are loaded: none of them asks a server, idle threads do not spin
    "DO_NOT_TRACK": "1",
    "GOMP_SPINCOUNT": "0",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}


@cli.command(cls=Verb, help=__doc__)
def main(  # noqa: PLR0913, PLR0917  # one for each option
    out_folder: Annotated[Path, typer.Option("--out", help="The run's folder.")],
    dataset: Annotated[Path, typer.Option(help="Folder of draftloop sync.")] = Path("dataset"),
    base: Annotated[Path, typer.Option(help="Folder of the base model, the one that vLLM serves.")] = MODELS
    / "tiny-qwen3",
    config: Annotated[Path | None, typer.Option(help="YAML with keys of the recipe.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe; may be repeated.")
    ] = None,
    case: Annotated[str, typer.Option(help="The adapter's case, where the dataset holds several.")] = "",
    replay: Annotated[
        list[str] | None,
        typer.Option(help="FOLDER[:SHARE]: mix in SHARE rows of it for each own row; may be repeated."),
    ] = None,
    dpo: Annotated[
        bool, typer.Option("--dpo", help="A second stage, on drafts and their corrections.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a stopped run is.")] = False,
) -> None:
    """Run the verb."""
    os.environ.update(BEFORE)
    if os.environ.get("RANK", "0") != "0":
        out.quiet = err.quiet = True  # of several processes, the first one speaks
    with plain_errors(f"--resume goes on; checkpoints are in {out_folder}.part."):
        recipe = read(config, change or ())
        model, own = open_base(base), open_dataset(dataset)
        name = case_of(own, case)
        replays = tuple(open_replay(words) for words in replay or ())
        corpus = gather(own, replays, model, recipe, dpo=dpo)
        _print_corpus(corpus, recipe.max_tokens)
        # It imports torch, which takes seconds; the options are checked by now.
        from draftloop.training.make import TrainingJob, make  # noqa: PLC0415

        job = TrainingJob(model, own, replays, recipe, name, dpo)
        with _StageMeters() as shown:
            record = make(job, corpus, out_folder, resume=resume, progress=shown)
        if record is None:
            raise KeyboardInterrupt
        _print_end(record, out_folder)


class _StageMeters:
    """A meter for each stage."""

    def __init__(self) -> None:
        self._meter: Meter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._meter is not None:
            self._meter.__exit__(kind, error, trace)

    def begin(self, doing: str, total: int | None = None, *, done: int = 0) -> None:
        """Begin the meter of a stage."""
        self.__exit__(None, None, None)
        if done:
            err.print(f"{doing}: going on after step {done} of {total}")
        self._meter = Meter(f"{doing}: steps", None if total is None else total - done).__enter__()

    def advance(self, count: int = 1) -> None:
        """Count steps."""
        if self._meter is not None:
            self._meter.advance(count)


def _print_corpus(corpus: TrainingCorpus, limit: int) -> None:
    counts = corpus.counts()
    words = f"{counts['own']} rows of the dataset"
    words += f", {counts['replayed']} replayed" if counts["replayed"] else ""
    words += f", {counts['pairs']} pairs" if counts["pairs"] else ""
    err.print(escape(f"{words}; longest: {counts['longest_tokens']} tokens"))
    if counts["held_out"]:
        err.print(f"{counts['held_out']} rows are left out: a dataset holds their questions out")
    if counts["not_rendered"]:
        err.print(
            f"[yellow]{counts['not_rendered']} rows are left out:[/yellow] the base model's chat template "
            "does not write them as they are"
        )
        for row in counts["not_rendered_rows"]:
            err.print(escape(f"  {row['file']}, line {row['line']}: {row['reason']}"))
    if counts["too_long"]:
        err.print(f"[yellow]{counts['too_long']} rows are left out:[/yellow] longer than {limit} tokens")
        for row in counts["too_long_rows"]:
            err.print(escape(f"  {row['file']}, line {row['line']}: {row['tokens']} tokens"))
        err.print("  Set max_tokens higher to train on them.")


def _print_end(record: dict[str, Any], folder: Path) -> None:
    first, last = record["loss"][0], record["loss"][-1]
    out.print(
        escape(
            f"{folder}: an adapter for {record['case']}, loss {first['loss']:.3g} to {last['loss']:.3g} "
            f"in {record['seconds']:.0f} s"
        )
    )
    tests = record["held_out"]
    if tests["rows"]:
        out.print(f"loss on {tests['rows']} held-out rows: {tests['base_loss']:.3g} to {tests['loss']:.3g}")
    out.print(escape(f"adapter: {folder}/adapter   run: {folder}/run.json   plot: {folder}/loss.png"))
    out.print(
        escape(
            f"Next: draftloop promote {folder} --project N, which measures it before anybody sees its drafts"
        )
    )
