"""Choice of a cascade's threshold: both models draft the held-out samples of a dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from draftloop.drafting.cascade import Calibration, Pair, calibrated, min_samples
from draftloop.errors import SetupError
from draftloop.flywheel.heldout import BulkDrafter, HeldOut, Measured, measure
from draftloop.prompting.prompt import Overrides
from draftloop.support.progress import Progress


def choose_samples(
    held_out: Mapping[str, HeldOut], case: str, budget: float, dataset: Path
) -> dict[str, HeldOut]:
    """Return the held-out samples of the cases to measure.

    Args:
        held_out: The dataset's held-out samples, by case.
        case: Only this case; empty: every case.
        budget: Share of tasks that may get a worse draft.
        dataset: Its folder.
    Raises:
        SetupError: There are none, or a case has too few documents for the budget.
    """
    chosen = {name: held for name, held in held_out.items() if held.rows and case in ("", name)}
    if not chosen:
        names = ", ".join(name for name, held in held_out.items() if held.rows) or "none"
        raise SetupError(
            f"{dataset} holds out no sample{f' of case {case!r}' if case else ''}; its cases: {names}.",
            hint="One in ten is held out: correct more tasks and sync again, or name another --dataset.",
        )
    for name, held in chosen.items():
        count, needed = len({row.sample.group for row in held.rows}), 2 * min_samples(budget)
        if count < needed:
            raise SetupError(
                f"{dataset} holds out {count} different texts of case '{name}'; a budget of {budget:.1%} "
                f"needs {needed}: half of them to choose on, half to measure.",
                hint="Allow a larger --budget, correct more tasks and sync again, or name a --case.",
            )
    return chosen


def calibrate(
    small: tuple[str, BulkDrafter],
    larger: tuple[str, BulkDrafter],
    samples: Mapping[str, HeldOut],
    overrides: Overrides,
    *,
    budget: float,
    seed: int,
    progress: Progress,
) -> dict[str, Calibration]:
    """Draft the samples with both models and choose a threshold for each case.

    Args:
        small: The small model's name and drafter.
        larger: The larger model's name and drafter.
        samples: The held-out samples, by case.
        overrides: The project's settings for the small model.
        budget: Share of tasks that may get a worse draft.
        seed: Draws the documents to choose on.
        progress: Shows the steps.
    Raises:
        ServiceError: A draft failed.
    """
    calibrations = {}
    for case, held in samples.items():
        first = measure(small[1], held, overrides, f"{case}, {small[0]}", progress)
        second = measure(larger[1], held, overrides.without_model(), f"{case}, {larger[0]}", progress)
        calibrations[case] = calibrated(_pairs(first, second), budget, np.random.default_rng(seed))
    return calibrations


def shared_threshold(calibrations: Mapping[str, Calibration]) -> float | None:
    """Return the threshold that keeps the budget in every case: the highest; None where a case has none."""
    thresholds = [one.threshold for one in calibrations.values()]
    known = [threshold for threshold in thresholds if threshold is not None]
    return max(known) if len(known) == len(thresholds) else None


def _pairs(small: Sequence[Measured], larger: Sequence[Measured]) -> list[Pair]:
    return [
        Pair(mine.draft.score if mine.draft.status == "ok" else None, mine.outcome, theirs.outcome)
        for mine, theirs in zip(small, larger, strict=True)
    ]
