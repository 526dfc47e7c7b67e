"""Sync what humans submitted, train an adapter on it, have it draft if it is surely better: one job.

One job goes on at a time, whoever begins it: this verb, Label Studio's button "Start Training", or the
backend after FLYWHEEL_AFTER new annotations. Until the adapter is promoted, what drafts now drafts on. A job
that was stopped or killed is begun again with the same command, and goes on from its last checkpoint.

    draftloop retrain --project 7
    draftloop retrain --list

Exit codes: 0 promoted, 1 not done, 2 wrong usage, 3 measured and not promoted.
"""

import shlex
from typing import Annotated

import structlog
import typer
from rich.markup import escape

from draftloop.app import make_adapters, trained_model
from draftloop.app.log import log_as_json
from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import connect, err, out, plain_errors
from draftloop.errors import SetupError
from draftloop.flywheel.jobs import LEASE_S, REFUSED, Training, VerbRunner
from draftloop.ledger.sqlite import JobRecord, Ledger
from draftloop.settings import Settings
from draftloop.support.environments import verb

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

        log = home / f"job-{job.id}.log" if begun else None
        state = Training(
            verbs=VerbRunner(ledger, job, verb, log, progress=_JobProgress(job, logs=bool(begun))),
            home=home,
            base=trained_model(settings).absolute(),
            options=shlex.split(settings.flywheel.train),
            adapters=make_adapters(settings.store),
        ).run()
        if state == "refused":
            out.print("Next: correct more tasks, then run the same command again")
            raise typer.Exit(REFUSED)
        out.print(f"Next: look at the new drafts; draftloop promote --rollback --project {project} goes back")


class _JobProgress:
    """What a job does: a line of the backend's log, where it was begun from there, else of the terminal."""

    def __init__(self, job: JobRecord, *, logs: bool) -> None:
        self._job = job
        self._logs = logs

    def begin(self, doing: str, total: int | None = None, *, done: int = 0) -> None:
        """Show it."""
        if self._logs:
            _log.info("job", job=self._job.id, project=self._job.project, doing=doing)
        else:
            out.print(escape(f"job {self._job.id}: {doing}"))

    def advance(self, count: int = 1) -> None:
        """Show nothing."""


def _begin(settings: Settings, ledger: Ledger, project: int) -> JobRecord:
    trained_model(settings)
    with connect(settings, "", "") as label_studio:
        annotations, who = label_studio.project(project).annotations, label_studio.check()
    job, new = ledger.begin_job(project, f"{who} with draftloop retrain", annotations, LEASE_S)
    if not new:
        raise SetupError(
            f"Job {job.id} goes on, of project {job.project} (step: {job.step}).",
            hint="One at a time: draftloop retrain --list tells when it has ended.",
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
