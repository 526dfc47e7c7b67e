"""Look at runs of code and remove those that nobody needs any more.

Runs and their files are kept under ARTIFACTS_URL. A run is in use while a task shows it, or while its
code stands in an annotation or a prediction; Label Studio is asked. A file is in use while any run that
stays has it. Whatever is younger than --older-than stays in any case.

    draftloop artifacts collect --dry-run               what would go
    draftloop artifacts collect                         remove it
    draftloop artifacts collect --older-than 7          days; 30 without it
    draftloop artifacts collect --project 7             runs of all other projects go!
    draftloop artifacts show KEY                        a run as JSON; its key stands on its page

It may be interrupted at any moment: the next run removes the rest. What tasks show through Label Studio's
own uploads stays there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer

from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import ApiKeyOption, Meter, UrlOption, connect, out, plain_errors
from draftloop.errors import SetupError, TaskError
from draftloop.execution.artifacts import Artifacts
from draftloop.labelstudio import LabelStudio
from draftloop.runs.job import LANGUAGES, Script, size
from draftloop.runs.run import RUN_KEY, inputs_of, run_key, run_to_json
from draftloop.settings import Settings

cli = app()
_DAY_S = 86400.0
Kind = TypeVar("Kind")


class ArtifactsAction(StrEnum):
    """What to do with runs."""

    collect = "collect"
    show = "show"


@cli.command(cls=Verb, help=__doc__)
def main(
    what: Annotated[ArtifactsAction, typer.Argument(help="Remove what is not in use, or show one run.")],
    key: Annotated[str, typer.Argument(help="The run to show.")] = "",
    project: Annotated[
        list[int] | None, typer.Option(help="Only runs of this project are in use; may be repeated.")
    ] = None,
    older_than: Annotated[float, typer.Option(min=0.05, help="Least age in days of what goes.")] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, only count.")] = False,
    url: UrlOption = "",
    api_key: ApiKeyOption = "",
) -> None:
    """Run the verb."""
    if (what is ArtifactsAction.show) != bool(key):
        raise typer.BadParameter("Say which: draftloop artifacts show KEY.")
    with plain_errors("Run the same command again."):
        settings = Settings()
        artifacts = Artifacts(settings.store.artifacts_url)
        if key:
            run = artifacts.run(key)
            if run is None:
                raise SetupError(
                    f"There is no run {key} at {artifacts.url}.", hint="ARTIFACTS_URL must be the backend's."
                )
            out.out(json.dumps(run_to_json(run), ensure_ascii=False, indent=2))
            return
        with connect(settings, url, api_key) as label_studio, Meter("reading tasks", None) as meter:
            shown, keys = 0, set[str]()
            for task in _tasks(label_studio, project or label_studio.project_ids()):
                shown += bool(task["data"].get(RUN_KEY))
                keys |= runs_of(task)
                meter.advance()
        if not shown:
            # More likely another Label Studio than the end of all work.
            raise SetupError(
                "No task of these projects shows a run, so every run would go.",
                hint="Correct LABEL_STUDIO_URL or --project; to remove all, delete what ARTIFACTS_URL names.",
            )
        done = artifacts.collect(keys, older_than * _DAY_S, dry_run=dry_run)
        out.print(f"{shown} tasks show a run; {done.kept_runs} runs and {done.kept_files} files stay")
        out.print(
            f"{'would remove' if dry_run else 'removed'} {done.runs} runs and {done.files} files, "
            f"{size(done.size_bytes)}"
        )
        if dry_run:
            out.print("Next: draftloop artifacts collect, with the same options and without --dry-run")


def runs_of(task: Mapping[str, Any]) -> set[str]:
    """Return the keys of the runs that a task needs.

    Args:
        task: Its data, annotations and predictions, as Label Studio lists them.
    Returns:
        That of the run it shows, and those that code in its annotations and predictions would have.
    """
    data = task["data"]
    keys = {data[RUN_KEY]} if isinstance(data.get(RUN_KEY), str) and data[RUN_KEY] else set()
    try:
        inputs = inputs_of(data)
    except TaskError:
        return keys
    for made in [*task.get("annotations", ()), *task.get("predictions", ())]:
        # Whatever is odd in a result, code beside it stays code.
        result = made.get("result")
        values = [region.get("value") for region in _only(dict, result if isinstance(result, list) else [])]
        held = [value[key] for value in _only(dict, values) for key in ("text", "textarea") if key in value]
        texts = [text for part in held for text in (part if isinstance(part, list) else [part])]
        for code in _only(str, texts):
            keys |= {run_key([Script(code, language)], inputs) for language in LANGUAGES}
    return keys


def _only(kind: type[Kind], parts: Sequence[Any]) -> list[Kind]:
    return [part for part in parts if isinstance(part, kind)]


def _tasks(label_studio: LabelStudio, projects: Sequence[int]) -> Iterator[dict[str, Any]]:
    for number in projects:
        yield from label_studio.tasks(label_studio.project(number), full=True)
