"""Whether corrections teach more in the order of scripts/next_tasks than by chance: the learning curve.

The embedded model drafts a pool of complaints of another kind than it knows (`demo.corpus.shifted`). Their
known answers are the corrections: of the first tasks of the pool, in either order, datasets of several sizes
are made, and on each an adapter is trained with the recipe of the embedded model, fewer rows the more often,
so that all trainings take as many steps. What each then drafts of held-out tasks, through the whole flow, is
compared with the answers. The pool is ranked once, by the drafts of the model before any correction.

Every step is kept in the folder: another run goes on with what is missing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib as mpl

from demo.corpus import shifted
from draftloop.dataset.corpus import Settled
from draftloop.dataset.folder import Lines
from draftloop.dataset.gates import Annotation, Rejected, judge
from draftloop.dataset.records import ProjectSource, State, append_record, index_record, write
from draftloop.dataset.sample import Sample, Split, present
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.errors import ServiceError
from draftloop.evaluation.measures import figures
from draftloop.flywheel import heldout
from draftloop.flywheel.adapters import Adapters
from draftloop.flywheel.heldout import HeldOut, HeldOutRow
from draftloop.labelling.labelling import STATUS_KEY, Task
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Overrides
from draftloop.review.acquisition import TaskCandidate, by_chance, rank
from draftloop.support.files import creating_folder, write_atomically
from draftloop.support.progress import UNWATCHED
from scripts.training import train

mpl.use("Agg")
from matplotlib import pyplot as plt

ORDERS: Mapping[str, Callable[..., Sequence[Any]]] = {"next": rank, "random": by_chance}
_NAMES = {"next": "order of next_tasks", "random": "random order"}
_COLOURS = {"next": "#2a6fdb", "random": "#8a8f98"}
_HELD_OUT_SEED = 1000
_PROJECT = 1

Tell = Callable[[str], None]
Curve = Sequence[tuple[float, float]]


class Sizes(NamedTuple):
    """How much is measured; a seed makes a pool, breaks its ties, and begins the trainings.

    epochs  of the largest dataset
    """

    corrections: tuple[int, ...] = (80, 160, 320)
    seeds: tuple[int, ...] = (0, 1)
    pool: int = 600
    held_out: int = 240
    epochs: int = 4


FULL = Sizes()


def measure(
    folder: Path, vllm: str, model: str, tell: Tell, sizes: Sizes = FULL
) -> tuple[dict[str, float], dict[str, Any]]:
    """Draft pools, train on parts of them, and measure the adapters.

    Args:
        folder: Keeps every step.
        vllm: Root address of vLLM, which takes adapters while it runs.
        model: Name of the embedded model there.
        tell: Takes progress, in words.
        sizes: How much is measured.
    Returns:
        `circle_base`, the share of fields that are right before; `circle_ORDER_SIZE` after so many
        corrections, the mean over seeds; `circle_accuracy`, the highest that both orders reach, and the
        corrections that each needs for it; and all points.
    """
    bench = _Bench(folder / f"pool-{sizes.pool}-held-out-{sizes.held_out}", f"{vllm}/v1", model, sizes, tell)
    base = bench.step("base", lambda: bench.drafted(bench.held_out))
    tell(f"before: {base['right']:.3f} of the fields are right")
    points = [
        {"order": order, "size": size, "seed": seed, **bench.point(order, size, seed)}
        for size, seed, order in product(sizes.corrections, sizes.seeds, ORDERS)
    ]
    samples = {"base": base, "points": points}
    return _figures(samples), samples


class _Bench:
    """The steps, each kept as a file."""

    def __init__(self, folder: Path, vllm: str, model: str, sizes: Sizes, tell: Tell) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.held_out = _rows(sizes.held_out, _HELD_OUT_SEED, held_out=True)
        self._vllm, self._model, self._sizes, self._tell = vllm, model, sizes, tell

    def step(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a step unless an earlier run did; return what it made."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            made = make()
            write_atomically(file, json.dumps(made, ensure_ascii=False).encode())
        kept: dict[str, Any] = json.loads(file.read_bytes())
        return kept

    def point(self, order: str, size: int, seed: int) -> dict[str, Any]:
        """Train on the first tasks of an order, and measure."""
        name = f"{order}-{size}-{seed}"
        rows = _rows(self._sizes.pool, seed, held_out=False)
        epochs = self._sizes.epochs * max(self._sizes.corrections) / size
        pool = self.step(f"pool-{seed}", lambda: self.drafted(rows))

        def make() -> dict[str, Any]:
            candidates = [
                TaskCandidate(place, score, row.sample.instruction)
                for place, (row, score) in enumerate(zip(rows, pool["scores"], strict=True))
            ]
            picked = [one.task for one in ORDERS[order](candidates, size, seed=seed)]
            dataset, run = self.folder / "datasets" / name, self.folder / "runs" / name
            if not dataset.exists():
                _store(dataset, [rows[place].sample for place in picked])
            log = self.folder / f"{name}.log"
            more = ("--set", f"seed={seed}", "--set", f"epochs={epochs:g}")
            record = train(dataset, run, *more, log=log)
            adapter = Adapters(self.folder / "adapters").register(run, self._model)
            with VllmModel(self._vllm, self._model) as model:
                model.load_adapter(adapter.name, adapter.folder)
            about = {
                "wrong_fields": fmean(1 - pool["qualities"][place] for place in picked),
                "steps": len(record["loss"]),
                "seconds": record["seconds"],
            }
            return {**self.drafted(self.held_out, adapter.name), **about}

        measured = self.step(name, make)
        self._tell(f"{_NAMES[order]}, {size} corrections, seed {seed}: {measured['right']:.3f} right")
        return measured

    def drafted(self, rows: Sequence[HeldOutRow], adapter: str = "") -> dict[str, Any]:
        """Draft tasks, by an adapter where one is named, and compare with their answers."""
        drafted_by = Overrides(model=adapter, profile="compact")
        with VllmModel(self._vllm, self._model) as model:
            drafter = Drafter(model, AskOptions(profile="compact", temperature=0), concurrency=16)
            measured = heldout.measure(drafter, HeldOut(list(rows)), drafted_by, adapter, UNWATCHED)
            drafter.close()
        outcomes = [one.outcome for one in measured]
        return {
            "right": fmean(outcome.quality for outcome in outcomes),
            "figures": figures(outcomes),
            "qualities": [outcome.quality for outcome in outcomes],
            "scores": [one.draft.score for one in measured],
        }


def needed(curve: Curve, accuracy: float) -> float:
    """Return how many corrections reach an accuracy, by linear interpolation between the points of a curve.

    Args:
        curve: (corrections, accuracy) by rising corrections.
        accuracy: The accuracy to reach.
    Returns:
        The number of corrections; infinity if the curve does not reach the accuracy.
    """
    if curve[0][1] >= accuracy:
        return curve[0][0]
    for (below, low), (above, high) in pairwise(curve):
        if high >= accuracy:
            return below + (above - below) * (accuracy - low) / (high - low)
    return float("inf")


def curve_of(samples: Mapping[str, Any], order: str) -> Curve:
    """Return an order's mean accuracy over the seeds, by corrections; 0 is the model before."""
    sizes = sorted({point["size"] for point in samples["points"]})
    curve = [(0.0, float(samples["base"]["right"]))]
    for size in sizes:
        same = [p["right"] for p in samples["points"] if (p["order"], p["size"]) == (order, size)]
        curve.append((float(size), fmean(same)))
    return curve


def draw(samples: Mapping[str, Any], file: Path) -> None:
    """Draw accuracy by corrections: the mean of each order as a line, each seed as a dot.

    Args:
        samples: What `measure` returned.
        file: A PNG; replaced.
    """
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for order in ORDERS:
        dots = [(p["size"], 100 * p["right"]) for p in samples["points"] if p["order"] == order]
        curve = curve_of(samples, order)
        axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color=_COLOURS[order], alpha=0.45)
        axes.plot(
            [x for x, _ in curve],
            [100 * y for _, y in curve],
            "-",
            color=_COLOURS[order],
            label=_NAMES[order],
        )
    axes.set_xlabel("tasks corrected")
    axes.set_ylabel("fields right on held-out tasks, %")
    axes.set_title("What corrections teach, by the order in which they are made")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _figures(samples: Mapping[str, Any]) -> dict[str, float]:
    curves = {order: curve_of(samples, order) for order in ORDERS}
    accuracy = min(max(right for _, right in curve) for curve in curves.values())
    values = {"circle_base": float(samples["base"]["right"])}
    for order, curve in curves.items():
        values |= {f"circle_{order}_{size:.0f}": right for size, right in curve[1:]}
    values["circle_accuracy"] = accuracy
    return values | {f"circle_needed_{order}": needed(curve, accuracy) for order, curve in curves.items()}


def _rows(count: int, seed: int, *, held_out: bool) -> list[HeldOutRow]:
    """Make tasks, and what their humans would submit."""
    case = Cases(shifted.CASES).get(shifted.CASE)
    rows = []
    for number, (data, value) in enumerate(shifted.make(count, seed, held_out=held_out), start=1):
        task = Task(number, {**data, STATUS_KEY: ""})
        regions = case.labelling.to_regions(present(value), task).regions
        sample = judge(Annotation(number, _PROJECT, task, regions, cancelled=False), case)
        if isinstance(sample, Rejected):
            raise ServiceError(f"Task {number} is no sample: {sample.reason}")
        rows.append(HeldOutRow(sample, case, task))
    return rows


def _store(folder: Path, samples: Sequence[Sample]) -> None:
    """Write a dataset as scripts/sync does; nothing is held out of so few."""
    splits: dict[int, Split] = {sample.annotation: "train" for sample in samples}
    with creating_folder(folder, durable=False) as part, Lines(part) as lines:
        placed = {sample.annotation: append_record(lines, index_record(sample)) for sample in samples}
        source = ProjectSource("Pool", "", samples[0].case, "", samples[0].metadata["config_hash"], None)
        write(part, lines, State({_PROJECT: source}, rows=placed), Settled(splits, {}))
