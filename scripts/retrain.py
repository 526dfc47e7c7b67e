"""Sync what humans submitted, train an adapter on it, have it draft if it is surely better: one job.

One job goes on at a time, whoever begins it: this verb, Label Studio's button "Start Training", or the
backend after FLYWHEEL_AFTER new annotations. Until the adapter is promoted, what drafts now drafts on. A job
that was stopped or killed is begun again with the same command, and goes on from its last checkpoint.

    scripts/retrain --project 7
    scripts/retrain --list

Exit codes: 0 promoted, 1 not done, 2 wrong usage, 3 measured and not promoted.
"""

import shlex
from typing import Annotated

import structlog
import typer
from rich.markup import escape

from backend.app import log_as_json, make_adapters, trained_model
from backend.edge.ledger import Job, Ledger
from backend.errors import SetupError
from backend.jobs import LEASE_S, REFUSED, Training
from backend.settings import ROOT, Settings
from scripts.terminal import Verb, app, connect, err, out, plain_errors

cli = app()
_log = structlog.get_logger("backend")


@cli.command(cls=Verb, help=__doc__)
def main(
    project: Annotated[int, typer.Option(help="Number of the project in Label Studio.")] = 0,
    only_list: Annotated[bool, typer.Option("--list", help="Only list the jobs, newest first.")] = False,
    begun: Annotated[int, typer.Option("--job", hidden=True, help="Number of a job that was begun.")] = 0,
) -> None:
    """Run the verb."""
    if not (project or only_list):
        raise typer.BadParameter("Say which project: --project N.")
    with plain_errors("Run the same command again: it goes on where it stopped."):
        settings = Settings()
        ledger = Ledger(settings.store.ledger_url, existing=True)
        if only_list:
            _list(ledger, project)
            return
        job = ledger.take_job(begun, LEASE_S) if begun else _begin(settings, ledger, project)
        home = settings.flywheel.folder.absolute() / str(project)
        home.mkdir(parents=True, exist_ok=True)
        if begun:  # what is said is said in the backend's log
            log_as_json(settings.backend.log_level)
            out.quiet = err.quiet = True

        def tell(what: str) -> None:
            if begun:
                _log.info("job", job=job.id, project=project, doing=what)
            else:
                out.print(escape(f"job {job.id}: {what}"))

        state = Training(
            ledger=ledger,
            job=job,
            scripts=ROOT / "scripts",
            home=home,
            base=trained_model(settings).absolute(),
            options=shlex.split(settings.flywheel.train),
            adapters=make_adapters(settings.store),
            log=home / f"job-{job.id}.log" if begun else None,
            tell=tell,
        ).run()
        if state == "refused":
            out.print("Next: correct more tasks, then run the same command again")
            raise typer.Exit(REFUSED)
        out.print(f"Next: look at the new drafts; scripts/promote --rollback --project {project} goes back")


def _begin(settings: Settings, ledger: Ledger, project: int) -> Job:
    trained_model(settings)
    with connect(settings, "", "") as label_studio:
        annotations, who = label_studio.project(project).annotations, label_studio.check()
    job, new = ledger.begin_job(project, f"{who} with scripts/retrain", annotations, LEASE_S)
    if not new:
        raise SetupError(
            f"Job {job.id} goes on, of project {job.project} (step: {job.step}).",
            hint="One at a time: scripts/retrain --list tells when it has ended.",
        )
    return job


def _list(ledger: Ledger, project: int) -> None:
    jobs = ledger.jobs(project or None)
    for job in jobs:
        ended = f" to {job.ended}" if job.ended else ""
        out.print(
            escape(
                f"job {job.id}  {job.begun}{ended}  project {job.project}  {job.state} ({job.step}), "
                f"by {job.why}. {job.told}"
            )
        )
    if not jobs:
        out.print("there was no job yet")


if __name__ == "__main__":
    cli()
