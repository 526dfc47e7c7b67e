"""Import files as tasks of a project.

A row needs the keys that the project's config shows; further columns are kept. A row whose shown
data is in the project already, or earlier in the files, is skipped: running it again after an
interruption completes the import and doubles nothing. Exit code 1 if rows were bad; the others
are imported.

A row of a code task has an "instruction" and names its "inputs", a list of paths below the input root
(in a CSV: one cell, a semicolon between paths), and may name the "output_files" that are wanted. The files
stay where they are: the task gets their names, sizes, hashes and a preview. Changed ones need a new import.

    scripts/import_tasks --project 7 complaints.csv
    scripts/import_tasks --project 7 --limit 100 march.jsonl april.jsonl
    scripts/import_tasks --project 8 --input-root /data/inputs code_tasks.jsonl
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from backend.core.labelling import STATUS_KEY, compile_labelling
from backend.errors import TaskError
from backend.settings import Settings
from scripts.inputs import CodeTasks
from scripts.rows import Row, fingerprint, read_rows
from scripts.terminal import (
    ApiKeyOption,
    Meter,
    ProjectOption,
    UrlOption,
    Verb,
    app,
    connect,
    err,
    out,
    plain_errors,
)

cli = app()
_SHOWN = 20  # bad rows told one by one; the rest is counted


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
        code_tasks = CodeTasks(target.label_config, input_root)

        def rows() -> Iterator[tuple[str, Row | str]]:
            for file in files:
                yield from (
                    (f"{file.name} {place}", row)
                    for place, row in read_rows(file, labelling, code_tasks=code_tasks.here)
                )

        total = sum(1 for _ in rows())
        with Meter("reading what is there", None) as meter:
            known = set()
            for task in label_studio.tasks(target):
                meter.advance()
                with suppress(TaskError):  # a task that lacks the keys is no duplicate of anything
                    known.add(fingerprint(labelling, task["data"], code_task=code_tasks.here))
        seen: set[bytes] = set()
        counts, problems = Counter[str](), list[str]()

        def new_rows() -> Iterator[Row]:
            for place, row in rows():
                if limit and counts["sent"] >= limit:
                    return
                meter.advance()
                try:
                    if isinstance(row, str):
                        raise TaskError(row)
                    filled = code_tasks.fill(row)
                    key = fingerprint(labelling, filled, code_task=code_tasks.here)
                except TaskError as error:
                    problems.append(f"{place}: {error.message.removeprefix('Task 0: ')}")
                    continue
                kind = "already there" if key in known else "twice" if key in seen else "sent"
                counts[kind] += 1
                seen.add(key)
                if kind == "sent":
                    yield {**filled, STATUS_KEY: ""} if labelling.shows_status else filled

        with Meter("importing", total) as meter:
            sent = sum(len(ids) for ids in label_studio.import_tasks(target, new_rows()))
        for problem in problems[:_SHOWN]:
            err.print(f"[yellow]not imported:[/yellow] {escape(problem)}")
        if len(problems) > _SHOWN:
            err.print(f"... and {len(problems) - _SHOWN} more")
        out.print(
            f"imported {sent} of {total} rows; {counts['already there']} were there already, "
            f"{counts['twice']} twice in the files, {len(problems)} bad"
        )
        out.print(f"Next: scripts/prelabel --project {project}")
        raise typer.Exit(1 if problems else 0)


if __name__ == "__main__":
    cli()
