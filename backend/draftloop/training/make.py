"""Make a run: check, train, draw, write down. What draftloop train does once rows are read.

Every process of a group comes through here; the first one alone writes.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftloop.support.files import disk_errors
from draftloop.support.progress import Progress
from draftloop.training.base import Base
from draftloop.training.fit import fit
from draftloop.training.plot import draw_losses
from draftloop.training.process_group import ProcessGroup, describe_environment
from draftloop.training.recipe import Recipe
from draftloop.training.rows import Dataset, Replay, TrainingCorpus
from draftloop.training.runs import CHECKPOINTS_ARE_KEPT, TrainingRun

PROFILE = "compact"  # rows ask with the case's one line (prompting/prompt.py), and so does who serves


@dataclass(frozen=True)
class TrainingJob:
    """What is wanted."""

    base: Base
    dataset: Dataset
    replays: tuple[Replay, ...]
    recipe: Recipe
    case: str
    dpo: bool

    def arguments(self) -> dict[str, Any]:
        """Give everything that was asked for, for the run's manifest."""
        return {
            "dataset": str(self.dataset.folder),
            "base": str(self.base.folder),
            "case": self.case,
            "dpo": self.dpo,
            "replay": [{**part.dataset.record(), "share": part.share} for part in self.replays],
            **self.recipe.model_dump(mode="json"),
        }

    def plan(self, base_sha256: str, processes: int) -> dict[str, Any]:
        """Give what decides the outcome: by content, wherever the folders are."""
        return {
            "base_model": base_sha256,
            "case": self.case,
            "dataset": self.dataset.manifest_sha256,
            "dpo": self.dpo,
            "processes": processes,
            "replay": [[part.dataset.manifest_sha256, part.share] for part in self.replays],
            **self.recipe.model_dump(mode="json"),
        }


def make(
    job: TrainingJob, corpus: TrainingCorpus, out: Path, *, resume: bool, progress: Progress
) -> dict[str, Any] | None:
    """Make a run, or go on with one.

    Args:
        job: What is wanted.
        corpus: Its rows.
        out: The run's folder.
        resume: Whether to go on where an earlier process stopped.
        progress: Shows the steps of each stage.
    Returns:
        What run.json says, also where the run is finished already; None where a signal stopped it.
    Raises:
        SetupError: The folder holds something else, or the recipe does not fit.
        ServiceError: The disk is full, or the memory.
    """
    group, run = ProcessGroup(), TrainingRun(out)
    try:
        base_sha256 = group.first(job.base.sha256)
        plan = job.plan(base_sha256, group.size)
        group.first(run.settle)
        if group.first(lambda: run.check(plan, resume=resume)):
            return run.record
        with ExitStack() as held:
            group.first(lambda: held.enter_context(run.making(plan)))
            fitted = fit(run, corpus, job.recipe, job.base, group, progress)
            if fitted is None:
                return None

            def describe(adapter_sha256: str) -> dict[str, Any]:
                return {
                    "case": job.case,
                    "profile": PROFILE,
                    "adapter_sha256": adapter_sha256,
                    "base_model": str(job.base.folder),
                    "base_model_sha256": base_sha256,
                    "dataset": job.dataset.record(),
                    "rows": corpus.counts(),
                    "arguments": job.arguments(),
                    "plan": plan,
                    "seed": job.recipe.seed,
                    **describe_environment(group),
                    "seconds": fitted.seconds,
                    "held_out": fitted.held_out,
                    "loss": fitted.losses,
                }

            def finish() -> dict[str, Any]:
                with disk_errors(run.part, CHECKPOINTS_ARE_KEPT):
                    draw_losses(fitted.losses, f"Loss of {run.out.name}", run.stage("loss.png"))
                return run.finish(fitted.adapter, describe)

            record: dict[str, Any] = group.first(finish)
            return record
    finally:
        group.leave()
