"""Import files as tasks of a project.

A row needs the keys that the project's config shows; further columns are kept. A row whose shown
data is in the project already, or earlier in the files, is skipped: running it again after an
interruption completes the import and doubles nothing. Exit code 1 if rows were bad; the others
are imported.

Rows may be tasks as Label Studio exports them (JSON). Their annotations are imported with them, as yours: who
made them, and when, is not kept. Their predictions are not: draftloop prelabel makes new ones.

A row of a code task has an "instruction" and names its "inputs", a list of paths below projects/ID or shared
in the input root (in a CSV: one cell, a semicolon between paths), and may name the "output_files" that are
wanted. The files stay where they are: the task gets their names, sizes, hashes and a preview. Changed ones
need a new import.

    draftloop import-tasks --project 7 complaints.csv
    draftloop import-tasks --project 7 --limit 100 march.jsonl april.jsonl
    draftloop import-tasks --project 8 --input-root /data/inputs code_tasks.jsonl
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import (
    ApiKeyOption,
    Meter,
    ProjectOption,
    UrlOption,
    connect,
    err,
    out,
    plain_errors,
)
from draftloop.importing.code_tasks import CodeTasks
from draftloop.importing.importing import Importing
from draftloop.importing.rows import LEFT_OUT
from draftloop.labelling.labelling import compile_labelling
from draftloop.settings import Settings

cli = app()
_SHOWN = 20  # bad rows that are listed; the rest are counted


@cli.command(cls=Verb, help=__doc__)
def main(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="CSV, JSON (a list) or JSONL, UTF-8.")
    ],
    project: ProjectOption,
    input_root: Annotated[
        Path | None,
        typer.Option(
            envvar="INPUT_ROOT", exists=True, file_okay=False, help="Folder of the input files of code tasks."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Import at most this many tasks; 0 is all.")] = 0,
    url: UrlOption = "",
    api_key: ApiKeyOption = "",
) -> None:
    """Run the verb."""
    again = "Run the same command again: what is there already is skipped."
    with plain_errors(again), connect(Settings(), url, api_key) as label_studio:
        target = label_studio.project(project)
        labelling = compile_labelling(target.label_config)
        importing = Importing(files, labelling, CodeTasks(target.label_config, input_root, target.id), limit)
        total = sum(1 for _ in importing.rows())
        with Meter("reading what is there", None) as meter:
            for task in label_studio.tasks(target):
                meter.advance()
                importing.add_known(task["data"])
        with Meter("importing", total) as meter:
            tasks = importing.new_tasks(meter)
            imported = label_studio.import_tasks(target, tasks, refuse=importing.refuse)
            sent = sum(len(ids) for ids in imported)
        _report(importing, sent, total)
        out.print(f"Next: draftloop prelabel --project {project}")
        raise typer.Exit(1 if importing.problems or importing.lost else 0)


def _report(importing: Importing, sent: int, total: int) -> None:
    for note in importing.notes:
        err.print(f"[yellow]note:[/yellow] {escape(note)}")
    for left_out in (importing.problems, importing.lost):
        for words in left_out[:_SHOWN]:
            err.print(f"[yellow]not imported:[/yellow] {escape(words)}")
        if len(left_out) > _SHOWN:
            err.print(f"... and {len(left_out) - _SHOWN} more")
    out.print(
        f"imported {sent} of {total} rows; {importing.counts['already there']} were there already, "
        f"{importing.counts['twice']} twice in the files, {len(importing.problems)} bad"
    )
    if importing.counts["annotations"]:
        out.print(f"with {importing.counts['annotations']} annotations, which are now yours")
    for kind in LEFT_OUT:
        if importing.counts[kind]:
            out.print(f"not imported: the {kind} of {importing.counts[kind]} rows")
