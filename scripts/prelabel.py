"""Draft all tasks of a project in bulk: the same flow as on opening a task, stored in batches.

Tasks that have a draft of the current version are left alone, so running it again after an
interruption completes the work and doubles nothing. A new model, prompt, schema or config is a new
version: then every task is drafted anew, and old drafts stay beside the new ones.

Writes one JSON line per task: input, value, status, reasons, raw answer, tokens, ms, version. Why a
draft needs a human is shown in its task where the config shows $draft_status. Exit code 1 if the model
failed for some tasks; they are asked again by the next run.

    scripts/prelabel --project 7
    scripts/prelabel --project 7 --limit 50 --out try.jsonl
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from backend.app import (
    make_adapters,
    make_cache,
    make_drafter,
    make_examples,
    make_execution,
    make_larger,
    make_larger_model,
    make_model,
    make_neighbours,
    make_publisher,
)
from backend.core.prompting import parse_extra_params
from backend.edge.artifacts import Artifacts
from backend.edge.cases import Cases
from backend.edge.ledger import Ledger
from backend.settings import Settings
from scripts.store import Records, Store, draft_project
from scripts.terminal import ApiKeyOption, ProjectOption, UrlOption, Verb, app, connect, out, plain_errors

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
        with (
            connect(settings, url, api_key) as label_studio,
            make_model(settings.model, make_adapters(settings.store)) as model,
            make_larger_model(settings) or nullcontext() as larger,
        ):
            target = label_studio.project(project)
            named, overrides = parse_extra_params(target.extra_params)
            ledger = Ledger(settings.store.ledger_url)
            chosen = Cases(settings.store.cases_dir).find(
                target.label_config, case or named, overrides.served_by(ledger.promoted(project))
            )
            # A server that is down, or has no such model, is told at once.
            model.check_served(chosen.overrides.model or settings.model.name, timeout_s=10)
            if larger is not None:
                larger.check_served(larger.name, timeout_s=10)
            artifacts = Artifacts(settings.store.artifacts_url)
            execution = make_execution(settings.execution, artifacts)
            examples = make_examples(settings.store)
            drafter = make_drafter(
                model,
                settings.model,
                make_cache(settings.store),
                make_neighbours(settings.store),
                execution,
                make_larger(larger, settings, execution, examples),
                examples,
            )
            records = Records(out_file or Path(f"prelabel-{project}.jsonl"))
            publish = make_publisher(settings, artifacts, label_studio)
            store = Store(label_studio, target, chosen, records, ledger, publish)
            done = draft_project(drafter, chosen, store, limit=limit)
            drafter.close()
            if not done:
                out.print("Next: look at the reasons in the record file, then run the same command again")
                raise typer.Exit(1)
            where = f"{label_studio.url}/projects/{project}"
            out.print(f"Next: correct at {where}, then scripts/sync --project {project}")


if __name__ == "__main__":
    cli()
