"""Make a run: check, train, plot, write. The part of draftloop train after rows are read.

Every process of a group runs this; only the first one writes.
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

PROFILE = "compact"  # rows have the case's one-line prompt, so the served adapter needs it too


@dataclass(frozen=True)
class TrainingJob:
    """The inputs of a training: base model, dataset, replayed datasets, recipe."""

    base: Base
    dataset: Dataset
    replays: tuple[Replay, ...]
    recipe: Recipe
    case: str
    dpo: bool

    def arguments(self) -> dict[str, Any]:
        """Return all inputs, for the run's manifest."""
        return {
            "dataset": str(self.dataset.folder),
            "base": str(self.base.folder),
            "case": self.case,
            "dpo": self.dpo,
            "replay": [{**part.dataset.record(), "share": part.share} for part in self.replays],
            **self.recipe.model_dump(mode="json"),
        }

    def plan(self, base_sha256: str, processes: int) -> dict[str, Any]:
        """Return what decides the outcome, with hashes in place of paths."""
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
    """Make a run, or continue one.

    Args:
        job: Its inputs.
        corpus: Its rows.
        out: The run's folder.
        resume: Whether to continue where an earlier process stopped.
        progress: Shows the steps of each stage.
    Returns:
        The content of run.json, also where the run was finished before; None where a signal stopped it.
    Raises:
        SetupError: The folder holds something else, or the recipe does not fit.
        ServiceError: Disk or memory is full.
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
