"""Draft all tasks of a project in bulk: the same flow as on opening a task, stored in batches.

Tasks that have a draft of the current version are left alone, so running it again after an
interruption completes the work and doubles nothing. A new model, prompt, schema or config is a new
version: then every task is drafted anew, and old drafts stay beside the new ones.

Writes one JSON line per task: input, value, status, reasons, raw answer, tokens, ms, version. Why a
draft needs a human is shown in its task where the config shows $draft_status. Exit code 1 if the model
failed for some tasks; they are asked again by the next run.

    draftloop prelabel --project 7
    draftloop prelabel --project 7 --limit 50 --out try.jsonl
"""

from pathlib import Path
from typing import Annotated

import typer

from draftloop.cli.commands import Verb, app
from draftloop.cli.drafters import Drafters, draft_tasks
from draftloop.cli.terminal import ApiKeyOption, ProjectOption, UrlOption, connect, out, plain_errors
from draftloop.ledger.sqlite import Ledger
from draftloop.prompting.prompt import parse_extra_params
from draftloop.settings import Settings

cli = app()


@cli.command(cls=Verb, help=__doc__)
def main(
    project: ProjectOption,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Record file; prelabel-PROJECT.jsonl if not given.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Draft at most this many tasks; 0 is all.")] = 0,
    case: Annotated[str, typer.Option(help="Case of the project, where its connection does not say.")] = "",
    url: UrlOption = "",
    api_key: ApiKeyOption = "",
) -> None:
    """Run the verb."""
    with plain_errors("Run the same command again: tasks that are drafted already are left alone."):
        settings = Settings()
        with connect(settings, url, api_key) as label_studio, Drafters(settings) as drafters:
            target = label_studio.project(project)
            named, overrides = parse_extra_params(target.extra_params)
            ledger = Ledger(settings.store.ledger_url)
            chosen = drafters.cases.find(
                target.label_config, case or named, overrides.served_by(ledger.promoted(project))
            )
            # Report at once a server that is down, or lacks the model.
            drafters.model.check_served(chosen.overrides.model or settings.model.name, timeout_s=10)
            if drafters.larger is not None:
                drafters.larger.check_served(drafters.larger.name, timeout_s=10)
            drafter = drafters.full()
            store = drafters.store(label_studio, target, chosen, ledger, out_file)
            done = draft_tasks(drafter, chosen, store, limit=limit)
            if not done:
                out.print("Next: look at the reasons in the record file, then run the same command again")
                raise typer.Exit(1)
            where = f"{label_studio.url}/projects/{project}"
            out.print(f"Next: correct at {where}, then draftloop sync --project {project}")
