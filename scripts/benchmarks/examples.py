"""Whether corrections in the prompt make drafts better: held-out complaints with and without them.

Tasks and corrections are generated with words and templates that the embedded model never saw. It was trained
without examples in its prompt, so what it makes of them says little about general models. There are two draws
of corrections and of tasks; the gain is over all tasks, with the interval that promotions are decided by.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl

from demo.corpus import generate
from draftloop.dataset.gates import group_of
from draftloop.dataset.sample import Sample, Split
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.examples import Snapshot, freeze
from draftloop.drafting.versions import AskOptions
from draftloop.evaluation.measures import DraftOutcome, figures, gain
from draftloop.flywheel.heldout import HeldOut, HeldOutRow, Measured
from draftloop.flywheel.heldout import measure as drafts
from draftloop.labelling.labelling import Task
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Case, Overrides
from draftloop.support.environments import ROOT
from draftloop.support.progress import UNWATCHED

mpl.use("Agg")
from matplotlib import pyplot as plt

_CASE = "complaint"
_TASKS_SEED, _CORRECTIONS_SEED = 77, 78_000
_COLOURS = ("#2a6fdb", "#d1495b", "#3a9d6e", "#b07aa1")

Tell = Callable[[str], None]
Way = tuple[int, int]  # how many corrections are shown, of how many


@dataclass(frozen=True)
class Sizes:
    """How much is drafted: `tasks` of each of `draws`, without corrections and then in each of the `ways`."""

    tasks: int = 300
    draws: int = 2
    ways: Sequence[Way] = ((3, 50), (3, 200), (3, 800), (1, 800))


def measure(
    folder: Path, vllm: str, model: str, tell: Tell, sizes: Sizes | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Draft the same tasks without corrections and with them.

    Args:
        folder: For the snapshots.
        vllm: Root address of vLLM.
        model: Name of the embedded model there.
        tell: Takes progress, in words.
        sizes: How much is drafted.
    Returns:
        By way (`none`, `3_of_800`): `right_examples_...` the mean share of fields that are right,
        `prompt_tokens_...`, `cached_share_...` and `ms_...` of a draft; `gain_...` with `..._low` and
        `..._high`. And what stands behind them, field by field.
    """
    sizes = sizes or Sizes()
    case = Cases(ROOT / "label_config").get(_CASE)
    values: dict[str, float] = {}
    samples: dict[str, Any] = {}
    without: list[DraftOutcome] = []
    with VllmModel(f"{vllm}/v1", model) as client:
        for way in ((0, 0), *sizes.ways):
            name = f"examples_{way[0]}_of_{way[1]}" if way[0] else "examples_none"
            drafted: list[Measured] = []
            for number in range(sizes.draws):
                examples = _frozen(folder, case, way, number)
                drafter = Drafter(
                    client, AskOptions(profile="compact", temperature=0), concurrency=16, examples=examples
                )
                drafted += drafts(drafter, _held(case, sizes.tasks, number), Overrides(), name, UNWATCHED)
                drafter.close()
            outcomes = [one.outcome for one in drafted]
            about = figures(outcomes)
            samples[name] = {**about, "draws": _by_draw(outcomes, sizes.draws)}
            values[f"right_{name}"] = about["quality"]
            values[f"prompt_tokens_{name}"] = about["prompt_tokens"]
            values[f"cached_share_{name}"] = fmean(
                one.draft.cached_tokens / max(1, one.draft.prompt_tokens) for one in drafted
            )
            values[f"ms_{name}"] = about["ms"]["mean"]
            if way[0]:
                gained = gain(without, outcomes)
                values |= {f"gain_{name}": gained.mean}
                values |= {f"gain_{name}_low": gained.low, f"gain_{name}_high": gained.high}
            else:
                without = outcomes
            tell(f"{name}: {100 * about['quality']:.1f} % of the fields right")
    return values, samples


def _frozen(folder: Path, case: Case, way: Way, number: int) -> Snapshot | None:
    shown, corrections = way
    if not shown:
        return None
    folder.mkdir(exist_ok=True)
    about = {"path": "generated", "manifest_sha256": "", "group_by": ""}
    samples = _samples(case, corrections, _CORRECTIONS_SEED + number, "train")
    return Snapshot(freeze(folder, samples, [about]).folder, shown=shown)


def _held(case: Case, tasks: int, number: int) -> HeldOut:
    samples = _samples(case, tasks, _TASKS_SEED + number, "test")
    return HeldOut([HeldOutRow(sample, case, Task(sample.task, dict(sample.input))) for sample in samples])


def _samples(case: Case, count: int, seed: int, split: Split) -> Iterator[Sample]:
    for number, row in enumerate(generate(_CASE, "held_out", count, seed)):
        value = {key: part for key, part in row.value.items() if part is not None}
        yield Sample(
            project=1,
            task=number,
            annotation=number,
            case=case.name,
            verdict="written",
            input={"text": row.text},
            system=case.compact,
            instruction=row.text,
            value=value,
            target=case.labelling.encode(value),
            group=group_of({"text": row.text}),
            split=split,
            metadata={"config_hash": case.labelling.config_hash},
        )


def _by_draw(outcomes: Sequence[DraftOutcome], draws: int) -> list[float]:
    size = len(outcomes) // draws
    return [
        round(fmean(outcome.quality for outcome in outcomes[draw * size : (draw + 1) * size]), 4)
        for draw in range(draws)
    ]


def draw(samples: Mapping[str, Any], file: Path) -> None:
    """Draw the share of right fields, each draw by itself, in every way.

    Args:
        samples: What `measure` gave.
        file: A PNG; replaced.
    """
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    names = [name.removeprefix("examples_").replace("_", " ") for name in samples]
    for number in range(max(len(about["draws"]) for about in samples.values())):
        shares = [about["draws"][number] for about in samples.values()]
        axes.plot(names, shares, "o", color=_COLOURS[number % len(_COLOURS)], label=f"draw {number + 1}")
    axes.bar(names, [about["quality"] for about in samples.values()], color="#d9dde3", zorder=0)
    axes.set_ylabel("share of fields that are right")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("corrections shown, of how many")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=130)
    plt.close(figure)
