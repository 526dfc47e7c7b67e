"""Choose when a larger model drafts instead of the small one, for an error budget, and say what it costs.

The small model is MODEL_NAME, the larger one CASCADE_NAME (at CASCADE_URL, with CASCADE_PROFILE). Both draft
the held-out samples of a dataset through the whole flow, without a cache. On half of the source documents
the lowest threshold is chosen at which, with 95 % confidence, no more tasks than the budget get a draft that
is wrong where the larger model would have been right. What it escalates, gets right and costs is measured on
the other half. A dataset of several cases gets one threshold: the highest of theirs.

    draftloop cascade --dataset dataset/ --budget 0.02
    draftloop cascade --dataset dataset/ --budget 0.05 --case complaint --out cascade
    draftloop cascade --dataset dataset/ --budget 0.02 --project 7     its adapter as the small model

Writes cascade.json and cascade.html, and prints the setting. Changes nothing: the backend takes
CASCADE_THRESHOLD when it is started with it. With another model, adapter or prompt it has to be chosen anew.

Exit codes: 0 chosen, 1 not done, 2 wrong usage, 3 measured, and no threshold keeps the budget.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from draftloop.cli.commands import Verb, app
from draftloop.cli.drafters import Drafters
from draftloop.cli.terminal import ApiKeyOption, Measuring, UrlOption, connect, out, plain_errors
from draftloop.drafting.cascade import Calibration
from draftloop.drafting.cascade_page import cascade_page
from draftloop.errors import SetupError
from draftloop.flywheel.calibration import calibrate, choose_samples, shared_threshold
from draftloop.flywheel.heldout import HeldOutSamples
from draftloop.ledger.sqlite import Ledger
from draftloop.prompting.prompt import Overrides, parse_extra_params
from draftloop.serving.readiness import ModelCheck
from draftloop.settings import Settings
from draftloop.support.files import disk_errors, write_atomically

cli = app()
_AGAIN = "Run the same command again."


@cli.command(cls=Verb, help=__doc__)
def main(  # one for each option
    dataset: Annotated[Path, typer.Option(help="Folder that draftloop sync wrote.")],
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
        drafters = stack.enter_context(Drafters(settings))
        model, larger = drafters.model, drafters.larger
        if larger is None:
            raise SetupError("CASCADE_NAME is not set.", hint="Name the larger model, and its CASCADE_URL.")
        wanted = project or api_key or settings.label_studio.api_key.get_secret_value()
        label_studio = stack.enter_context(connect(settings, url, api_key)) if wanted else None
        overrides = Overrides()
        if project and label_studio is not None:
            _, overrides = parse_extra_params(label_studio.project(project).extra_params)
            ledger = Ledger(settings.store.ledger_url, existing=True)
            overrides = overrides.served_by(ledger.promoted(project))
        samples = HeldOutSamples(drafters.cases, label_studio).read(dataset)
        chosen = choose_samples(samples, case, budget, dataset)
        ModelCheck(model).check()
        ModelCheck(larger).check()
        small = overrides.model or model.name
        calibrations = calibrate(
            (small, drafters.uncached()),
            (larger.name, drafters.of_larger_model(larger)),
            chosen,
            overrides,
            budget=budget,
            seed=seed,
            progress=Measuring(),
        )
        threshold = shared_threshold(calibrations)
        about = {
            "threshold": threshold,
            "budget": budget,
            "seed": seed,
            "small": {"model": small, "profile": overrides.profile or settings.model.profile},
            "larger": {"model": larger.name, "profile": settings.cascade.profile},
            "cases": {
                name: {"lost": held.lost, "datasets": held.datasets, **calibrations[name].record()}
                for name, held in chosen.items()
            },
        }
        page = cascade_page(small, larger.name, calibrations)
        _write(out_folder, {"cascade.json": json.dumps(about, indent=2) + "\n", "cascade.html": page})
        _print_calibrations(calibrations)
        out.print(f"report: {out_folder / 'cascade.html'}")
        if threshold is None:
            out.print("Next: allow a larger --budget, correct more tasks, or train the small model")
            raise typer.Exit(3)
        out.print(f"Next: start the backend with CASCADE_THRESHOLD={threshold:g}")


def _write(folder: Path, files: Mapping[str, str]) -> None:
    with disk_errors(folder, "Choose another --out."):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content.encode())


def _print_calibrations(calibrations: Mapping[str, Calibration]) -> None:
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
        for what, figure in figures.items():
            out.print(f"  {what:<24} {figure}")
