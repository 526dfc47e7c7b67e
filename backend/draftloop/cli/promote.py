"""Have a trained adapter draft a project's tasks, if it is surely better than what drafts them now.

Registers the adapter (ADAPTERS_DIR), loads it into vLLM under a name of its own, and drafts the held-out
samples of its dataset twice through the whole flow: with what drafts the project now, and with the adapter.
It is promoted if the 95 % interval of the gain lies above 0 and no other case loses more than a point. Then
every backend process drafts with it, the project's tasks that nobody has begun are drafted again, and the
project's tabs show its version. What was drafted before keeps its version.

    draftloop promote runs/2026-01-01 --project 7
    draftloop promote runs/2026-01-01 --project 7 --guard dataset/flights --guard dataset/entities
    draftloop promote --rollback --project 7
    draftloop promote --list

Exit codes: 0 promoted (or rolled back), 1 not done, 2 wrong usage, 3 measured and not promoted.
"""

import getpass
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from draftloop.app import make_adapters
from draftloop.cli.commands import Verb, app
from draftloop.cli.drafters import Drafters, draft_tasks
from draftloop.cli.terminal import (
    ApiKeyOption,
    Measuring,
    UrlOption,
    connect,
    out,
    plain_errors,
    side_by_side,
)
from draftloop.dataset.folder import locked
from draftloop.flywheel.adapters import Adapters
from draftloop.flywheel.promotion import MARGIN, Decision, Flywheel
from draftloop.ledger.sqlite import Ledger
from draftloop.settings import Settings

cli = app()
_AGAIN = "Run the same command again: it goes on where it stopped."


@cli.command(cls=Verb, help=__doc__)
def main(  # noqa: PLR0913, PLR0917  # one for each option
    run: Annotated[Path | None, typer.Argument(help="Folder that draftloop train wrote.")] = None,
    project: Annotated[int, typer.Option(help="Number of the project in Label Studio.")] = 0,
    dataset: Annotated[
        Path | None,
        typer.Option(help="Measure on this dataset's held-out samples, not on those of the training."),
    ] = None,
    guard: Annotated[
        list[Path] | None,
        typer.Option(
            help="Dataset whose cases must not lose; may be repeated. Else those of other projects."
        ),
    ] = None,
    margin: Annotated[float, typer.Option(min=0, max=100, help="Points that another case may lose.")] = 100
    * MARGIN,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Take the project's last promotion back.")
    ] = False,
    only_list: Annotated[bool, typer.Option("--list", help="Only list what was decided, and when.")] = False,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="Record file of the drafts; prelabel-PROJECT.jsonl if not given."),
    ] = None,
    url: UrlOption = "",
    api_key: ApiKeyOption = "",
) -> None:
    """Run the verb."""
    if not (only_list or project):
        raise typer.BadParameter("Say which project: --project N.")
    if not only_list and (run is None) != rollback:
        raise typer.BadParameter("Either a run, or --rollback.")
    with plain_errors(_AGAIN):
        settings = Settings()
        adapters = make_adapters(settings.store)
        if only_list:
            _list(adapters, project)
            return
        ledger = Ledger(settings.store.ledger_url, existing=True)
        with (
            connect(settings, url, api_key) as label_studio,
            Drafters(settings) as drafters,
            locked(adapters.folder, "promotion"),
        ):
            who = f"{_user()} as {label_studio.check()}"
            drafter = drafters.full()  # what is wrong with its settings is said before anything is measured
            flywheel = Flywheel(
                label_studio, drafters.cases, adapters, ledger, drafters.model, drafters.uncached()
            )
            if run is not None:
                decision = flywheel.promote(
                    project,
                    run,
                    who=who,
                    dataset=dataset,
                    guards=guard or (),
                    margin=margin / 100,
                    progress=Measuring(),
                )
                _print_decision(decision)
                if not decision.promoted:
                    raise typer.Exit(3)
            else:
                was, now = flywheel.roll_back(project, who=who)
                drafts = now.model if now else settings.model.name
                out.print(f"rolled back: {was} no longer drafts project {project}; {drafts} does")
            target = label_studio.project(project)
            case = flywheel.current(target)
            # The pages of tasks show reasons of the version that is taken back: write those of the other one.
            done = draft_tasks(
                drafter,
                case,
                drafters.store(label_studio, target, case, ledger, out_file),
                unbegun=True,
                again=rollback,
            )
            if done:
                flywheel.drafted(project, drafter.version(case).name, who=who)
        if not done:
            out.print("Next: look at the reasons in the record file, then run the same command again")
            raise typer.Exit(1)
        back = "" if rollback else f"; draftloop promote --rollback --project {project} goes back"
        out.print(f"Next: correct at {label_studio.url}/projects/{project}{back}")


def _user() -> str:
    try:
        return getpass.getuser()
    except KeyError:  # of a container that has no name for it
        return str(os.getuid())


def _print_decision(decision: Decision) -> None:
    if decision.already:
        out.print(f"{decision.adapter.name} drafts this project already")
        return
    for name, figures in decision.evidence["cases"].items():
        before, after, gain = figures["before"], figures["after"], figures["gain"]
        lost = f", {figures['lost']} more are not what they were" if figures["lost"] else ""
        out.print(f"{escape(name)}: {before['samples']} held-out samples of {figures['texts']} texts{lost}")
        for line in side_by_side(before, after, gain):
            out.print(line)
    out.print(f"evidence: {decision.evidence_file}")
    if decision.promoted:
        out.print(f"promoted: {decision.adapter.name}, version {decision.evidence['after']}")
        return
    out.print(f"not promoted: {decision.adapter.name}; {decision.evidence['before']} goes on")
    for objection in decision.objections:
        out.print(f"  {escape(objection)}")
    out.print(
        "Next: correct more tasks, sync, train with others of the old cases among the rows, promote again"
    )


def _list(adapters: Adapters, project: int) -> None:
    entries = [entry for entry in adapters.journal() if not project or entry["project"] == project]
    for entry in entries:
        what = f"{entry['action']} {entry.get('adapter') or entry['version']}{_more(entry)}"
        out.print(escape(f"{entry['at']}  project {entry['project']}  {what}"))
    if not entries:
        out.print(f"{adapters.folder} holds no decision yet")


def _more(entry: Mapping[str, Any]) -> str:
    evidence = f", evidence {entry['evidence'][:12]}" if "evidence" in entry else ""
    reasons = f": {' '.join(entry['reasons'])}" if entry.get("reasons") else ""
    return f", by {entry['who']}{evidence}{reasons}"
