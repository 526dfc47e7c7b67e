"""Whether a draft's score tells that it is right: AUROC and reliability on held-out generated tasks.

The tasks' answers are known; names, templates and clauses are in none of the training lists. AUROC is the
probability that a right draft has a higher score than a wrong one: 0.5 is chance, 1 is perfect. Reliability
puts drafts into bins of equal number by their score and compares its mean with the share that is right.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

from demo.corpus import CASES, generate
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.labelling.labelling import Task
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT

mpl.use("Agg")
from matplotlib import pyplot as plt

_SEED = 77
_BINS = 8
_COLOURS = ("#2a6fdb", "#d1495b", "#3a9d6e", "#b07aa1")

Tell = Callable[[str], None]
Judged = Sequence[tuple[float, bool]]


def measure(vllm: str, model: str, tasks: int, tell: Tell) -> tuple[dict[str, float], dict[str, Any]]:
    """Draft held-out tasks of every case and judge their scores.

    Args:
        vllm: Root address of vLLM.
        model: Name of the embedded model there.
        tasks: How many of each case.
        tell: Takes progress, in words.
    Returns:
        `auroc_CASE` of whole drafts, `auroc_fields` over single fields of all cases, `right_CASE` the share
        of whole drafts that are right; and the (score, right) pairs behind them.
    """
    cases = Cases(ROOT / "label_config")
    figures: dict[str, float] = {}
    whole: dict[str, list[tuple[float, bool]]] = {}
    fields: list[tuple[float, bool]] = []
    with VllmModel(f"{vllm}/v1", model) as client:
        drafter = Drafter(client, AskOptions(profile="compact", temperature=0), concurrency=16)
        for name in CASES:
            known = list(generate(name, "held_out", tasks, _SEED))
            rows = [Task(number, {"text": one.text}) for number, one in enumerate(known, start=1)]
            drafts = drafter.draft(cases.get(name), rows, deadline_s=600)
            whole[name] = []
            for draft, one in zip(drafts, known, strict=True):
                truth = {key: part for key, part in one.value.items() if part is not None}
                value = draft.value or {}
                whole[name].append((draft.score, draft.value == truth))
                fields += [
                    (score, value.get(key) == truth.get(key)) for key, score in draft.field_scores.items()
                ]
            figures[f"right_{name}"] = sum(right for _, right in whole[name]) / tasks
            figures[f"auroc_{name}"] = auroc(whole[name])
            tell(f"{name}: {figures[f'right_{name}']:.2f} right, AUROC {figures[f'auroc_{name}']:.2f}")
        drafter.close()
    figures["auroc_fields"] = auroc(fields)
    return figures, {"whole": whole, "fields": fields}


def auroc(judged: Judged) -> float:
    """Return the probability that a right draft scores higher than a wrong one; ties count half.

    Args:
        judged: (score, right) pairs.
    Returns:
        0..1; NaN where all are right or all are wrong.
    """
    right = [score for score, good in judged if good]
    wrong = [score for score, good in judged if not good]
    if not right or not wrong:
        return float("nan")
    wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    return wins / (len(right) * len(wrong))


def bins(judged: Judged, number: int = _BINS) -> list[tuple[float, float, int]]:
    """Put drafts into bins of about equal number by their score.

    Args:
        judged: (score, right) pairs.
        number: Of bins.
    Returns:
        Mean score, share right and count of each bin, by rising score.
    """
    ranked = sorted(judged)
    edges = [round(index * len(ranked) / number) for index in range(number + 1)]
    parts = [ranked[low:high] for low, high in pairwise(edges) if high > low]
    return [
        (sum(score for score, _ in part) / len(part), sum(good for _, good in part) / len(part), len(part))
        for part in parts
    ]


def draw(samples: Mapping[str, Any], file: Path) -> None:
    """Draw the reliability of whole drafts, by case, and of single fields.

    Args:
        samples: What `measure` gave.
        file: A PNG; replaced.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained", sharey=True)
    curves = [(panels[0], name, judged) for name, judged in samples["whole"].items()]
    curves.append((panels[1], "fields of all cases", samples["fields"]))
    for number, (axes, name, judged) in enumerate(curves):
        points = bins([(score, good) for score, good in judged])
        colour = _COLOURS[number % len(_COLOURS)]
        label = f"{name} (AUROC {auroc(judged):.2f})"
        axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color=colour, label=label)
    for axes, title in zip(panels, ("whole drafts", "single fields"), strict=True):
        axes.plot([0, 1], [0, 1], "--", color="#8a8f98", linewidth=1)
        axes.set_title(title)
        axes.set_xlabel("score (mean of the bin)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        axes.set_ylim(-0.03, 1.03)
    panels[0].set_ylabel("share of drafts that are right")
    figure.savefig(file, dpi=130)
    plt.close(figure)
