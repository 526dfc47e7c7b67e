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

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from backend.app import make_cache, make_drafter, make_execution, make_neighbours, make_publisher
from backend.core.labelling import Task
from backend.core.prompting import parse_extra_params
from backend.edge.artifacts import Artifacts
from backend.edge.cases import Cases
from backend.edge.ledger import Ledger
from backend.edge.vllm import VllmModel
from backend.errors import ServiceError
from backend.settings import ModelSettings, Settings
from scripts.store import Records, Store
from scripts.terminal import (
    ApiKeyOption,
    Meter,
    ProjectOption,
    UrlOption,
    Verb,
    app,
    connect,
    out,
    plain_errors,
)

cli = app()
_BATCH = 200  # drafts stored at once; what a crash may cost is drafted again
_BATCH_S = 15.0
_GIVE_UP = 20  # failed drafts in a row: each has been tried for minutes


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
        label_studio = connect(settings, url, api_key)
        target = label_studio.project(project)
        named, overrides = parse_extra_params(target.extra_params)
        chosen = Cases(settings.store.cases_dir).find(target.label_config, case or named, overrides)
        check_model(settings.model)
        artifacts = Artifacts(settings.store.artifacts_url)
        drafter = make_drafter(
            settings.model,
            make_cache(settings.store),
            make_neighbours(settings.store),
            make_execution(settings.execution, artifacts),
        )
        version = drafter.version(chosen)
        ledger = Ledger(settings.store.ledger_url)
        ledger.remember_version(project, version, drafter.manifest(chosen))

        there, missing = label_studio.count_tasks(target), label_studio.count_tasks(target, lacking=version)
        todo = min(limit or missing, missing)
        out.print(f"version {version}: {there} tasks, {there - missing} drafted already, {todo} to draft")
        running: dict[int, Task] = {}

        def tasks() -> Iterator[Task]:
            for found in islice(label_studio.tasks(target, lacking=version), todo):
                running[found["id"]] = Task(found["id"], found["data"])
                yield running[found["id"]]

        counts, failed_in_a_row = Counter[str](), 0
        records = Records(out_file or Path(f"prelabel-{project}.jsonl"))
        publish = make_publisher(settings, artifacts, label_studio)
        with (
            Meter("drafting", todo) as meter,
            Store(label_studio, target, chosen, records, ledger, publish) as store,
        ):
            for draft in drafter.stream(chosen, tasks()):
                store.add(running.pop(draft.task_id), draft)
                counts[draft.status] += 1
                meter.advance()
                failed_in_a_row = failed_in_a_row + 1 if draft.status == "failed" else 0
                if failed_in_a_row >= _GIVE_UP:
                    raise ServiceError(f"{_GIVE_UP} drafts in a row failed: {draft.reasons[0]}")
        drafter.close()

        drafted = counts.total() - counts["failed"] - len(store.refused)
        if (drafted or there > missing) and target.model_version != version:
            label_studio.set_model_version(target, version)  # the tabs show the scores of this version
        rate = counts.total() / meter.seconds
        told = ", ".join(
            f"{counts[status]} {status}" for status in ("ok", "invalid", "undecodable", "failed")
        )
        out.print(f"{counts.total()} drafted in {meter.seconds:.1f} s ({rate:.1f}/s): {told}")
        if store.refused:
            out.print(
                f"Label Studio refused the drafts of {len(store.refused)} tasks, as of {store.refused[0]}"
            )
        if counts["failed"] or store.refused:
            out.print("Next: look at the reasons in the record file, then run the same command again")
            raise typer.Exit(1)
        out.print(
            f"Next: correct at {label_studio.url}/projects/{project}, then scripts/sync --project {project}"
        )


def check_model(settings: ModelSettings) -> None:
    """Ask the server for its models, so that one that is down or has no such model is told at once."""
    url, key = str(settings.url), settings.api_key.get_secret_value()
    with VllmModel(url, settings.name, api_key=key) as model:
        _ = model.context_tokens


if __name__ == "__main__":
    cli()
