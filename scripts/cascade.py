"""Choose when a larger model drafts instead of the small one, for an error budget, and say what it costs.

The small model is MODEL_NAME, the larger one CASCADE_NAME (at CASCADE_URL, with CASCADE_PROFILE). Both draft
the held-out samples of a dataset through the whole flow, without a cache. On half of the source documents
the lowest threshold is chosen at which, with 95 % confidence, no more tasks than the budget get a draft that
is wrong where the larger model would have been right. What it escalates, gets right and costs is measured on
the other half. A dataset of several cases gets one threshold: the highest of theirs.

    scripts/cascade --dataset dataset/ --budget 0.02
    scripts/cascade --dataset dataset/ --budget 0.05 --case complaint --out cascade
    scripts/cascade --dataset dataset/ --budget 0.02 --project 7     its adapter as the small model

Writes cascade.json and cascade.html, and prints the setting. Changes nothing: the backend takes
CASCADE_THRESHOLD when it is started with it. With another model, adapter or prompt it has to be chosen anew.

Exit codes: 0 chosen, 1 not done, 2 wrong usage, 3 measured, and no threshold keeps the budget.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.markup import escape

from backend.app import (
    make_adapters,
    make_drafter,
    make_examples,
    make_execution,
    make_larger_drafter,
    make_larger_model,
    make_model,
)
from backend.core.cascade import Calibration, Pair, calibrated, least
from backend.core.cascadepage import cascade_page
from backend.core.prompting import Overrides, parse_extra_params
from backend.edge.artifacts import Artifacts
from backend.edge.cases import Cases
from backend.edge.folder import on_disk
from backend.edge.ledger import Ledger
from backend.errors import ServiceError, SetupError
from backend.heldout import HeldOut, HeldOutSamples, Measured, measure
from backend.settings import Settings
from scripts.terminal import ApiKeyOption, Measuring, UrlOption, Verb, app, connect, out, plain_errors

cli = app()
_AGAIN = "Run the same command again."


@cli.command(cls=Verb, help=__doc__)
def main(  # one for each option
    dataset: Annotated[Path, typer.Option(help="Folder that scripts/sync wrote.")],
    budget: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Share of tasks that may get a worse draft by this.")
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the report.")] = Path("cascade"),
    case: Annotated[str, typer.Option(help="Only this case; every case of the dataset if not given.")] = "",
    project: Annotated[
        int, typer.Option(help="The small model is what drafts this project: its adapter, its wishes.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Draws the documents to choose on.")] = 0,
    url: UrlOption = "",
    api_key: ApiKeyOption = "",
) -> None:
    """Run the verb."""
    with plain_errors(_AGAIN), ExitStack() as stack:
        settings = Settings()
        larger = make_larger_model(settings)
        if larger is None:
            raise SetupError("CASCADE_NAME is not set.", hint="Name the larger model, and its CASCADE_URL.")
        stack.enter_context(larger)
        model = stack.enter_context(make_model(settings.model, make_adapters(settings.store)))
        wanted = project or api_key or settings.label_studio.api_key.get_secret_value()
        label_studio = stack.enter_context(connect(settings, url, api_key)) if wanted else None
        overrides = Overrides()
        if project and label_studio is not None:
            _, overrides = parse_extra_params(label_studio.project(project).extra_params)
            ledger = Ledger(settings.store.ledger_url, existing=True)
            overrides = overrides.served_by(ledger.promoted(project))
        found = HeldOutSamples(Cases(settings.store.cases_dir), label_studio).read(dataset)
        chosen = _enough(found, case, budget, dataset)
        model.probe()
        larger.probe()
        execution = make_execution(settings.execution, Artifacts(settings.store.artifacts_url))
        examples = make_examples(settings.store)
        small = make_drafter(model, settings.model, execution=execution, examples=examples)
        theirs = make_larger_drafter(larger, settings, execution, examples)
        calibrations = {}
        for name, held in chosen.items():
            progress = Measuring()
            first = measure(small, held, overrides, f"{name}, {overrides.model or model.name}", progress)
            second = measure(theirs, held, overrides.elsewhere(), f"{name}, {larger.name}", progress)
            calibrations[name] = calibrated(_pairs(first, second), budget, np.random.default_rng(seed))
        small.close()
        theirs.close()
        threshold = _highest(calibrations)
        about = {
            "threshold": threshold,
            "budget": budget,
            "seed": seed,
            "small": {
                "model": overrides.model or model.name,
                "profile": overrides.profile or settings.model.profile,
            },
            "larger": {"model": larger.name, "profile": settings.cascade.profile},
            "cases": {
                name: {"lost": held.lost, "datasets": held.datasets, **calibrations[name].record()}
                for name, held in chosen.items()
            },
        }
        page = cascade_page(overrides.model or model.name, larger.name, calibrations)
        _write(out_folder, {"cascade.json": json.dumps(about, indent=2) + "\n", "cascade.html": page})
        _tell(calibrations)
        out.print(f"report: {out_folder / 'cascade.html'}")
        if threshold is None:
            out.print("Next: allow a larger --budget, correct more tasks, or train the small model")
            raise typer.Exit(3)
        out.print(f"Next: start the backend with CASCADE_THRESHOLD={threshold:g}")


def _enough(found: Mapping[str, HeldOut], case: str, budget: float, dataset: Path) -> dict[str, HeldOut]:
    """Give the cases to measure, each with documents enough for the budget."""
    chosen = {name: held for name, held in found.items() if held.rows and case in ("", name)}
    if not chosen:
        there = ", ".join(name for name, held in found.items() if held.rows) or "none"
        raise SetupError(
            f"{dataset} holds out no sample{f' of case {case!r}' if case else ''}; its cases: {there}.",
            hint="One in ten is held out: correct more tasks and sync again, or name another --dataset.",
        )
    for name, held in chosen.items():
        count, needed = len({row.sample.group for row in held.rows}), 2 * least(budget)
        if count < needed:
            raise SetupError(
                f"{dataset} holds out {count} different texts of case '{name}'; a budget of {budget:.1%} "
                f"needs {needed}: half of them to choose on, half to measure.",
                hint="Allow a larger --budget, correct more tasks and sync again, or name a --case.",
            )
    return chosen


def _pairs(small: Sequence[Measured], larger: Sequence[Measured]) -> list[Pair]:
    return [
        Pair(mine.draft.score if mine.draft.status == "ok" else None, mine.outcome, theirs.outcome)
        for mine, theirs in zip(small, larger, strict=True)
    ]


def _highest(calibrations: Mapping[str, Calibration]) -> float | None:
    """Give the threshold that keeps the budget in every case: a higher one harms less."""
    thresholds = [one.threshold for one in calibrations.values()]
    known = [threshold for threshold in thresholds if threshold is not None]
    return max(known) if len(known) == len(thresholds) else None


def _write(folder: Path, files: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            aside = folder / f".{name}.part"
            aside.write_text(content, encoding="utf-8")
            on_disk(aside)
            aside.replace(folder / name)
    except OSError as error:
        raise ServiceError(
            f"{folder} cannot be written: {error.strerror}.", hint="Choose another --out."
        ) from error


def _tell(calibrations: Mapping[str, Calibration]) -> None:
    for name, one in calibrations.items():
        out.print(escape(f"{name}: {one.chosen_on} texts to choose on, {one.measured_on} others to measure"))
        out.print(
            f"  {'right alone':<24} small {one.small['accepted']:.1%}, larger {one.larger['accepted']:.1%}"
        )
        if one.threshold is None or one.measured is None:
            out.print(
                f"  no threshold keeps {one.budget:.1%}: too much of what the small model is sure of is wrong"
            )
            continue
        alone = one.larger["prompt_tokens"] + one.larger["completion_tokens"]
        figures = {
            "threshold": f"{one.threshold:g}",
            "escalated": f"{one.measured.escalated:.1%}",
            "right": f"{one.measured.accepted:.1%}, fields {one.measured.quality:.1%}",
            "harmed": f"{one.measured.harmed:.1%}, at most {one.measured.harmed_at_most:.1%} (95 %)",
            "tokens of the small": f"{one.measured.small_tokens:.0f} a draft",
            "tokens of the larger": f"{one.measured.larger_tokens:.0f} a draft instead of {alone:.0f}",
            "ms a draft": f"{one.measured.ms:.0f} instead of {one.larger['ms']['mean']:.0f}",
        }
        for what, told in figures.items():
            out.print(f"  {what:<24} {told}")


if __name__ == "__main__":
    cli()
