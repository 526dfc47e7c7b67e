"""Export what humans submitted as a dataset: samples, Alpaca rows, chat messages, rejects, manifest.

Reads only what changed since the last time; a folder remembers its projects. Running it again with
nothing new writes nothing. It may be interrupted at any moment: the next run completes it.

    scripts/sync --project 7
    scripts/sync --project 7 --project 8 --out dataset/
    scripts/sync --out dataset/
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from backend.edge.cases import Cases
from backend.settings import Settings
from backend.sync import sync
from scripts.terminal import ApiKeyOption, Meter, UrlOption, Verb, app, connect, out, plain_errors

cli = app()


@cli.command(cls=Verb, help=__doc__)
def main(
    project: Annotated[
        list[int] | None,
        typer.Option(help="Project to export; may be repeated. The folder's own come along."),
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="The dataset's folder.")] = Path("dataset"),
    case: Annotated[
        str, typer.Option(help="Case of the projects, where their connection does not say.")
    ] = "",
    url: UrlOption = "",
    api_key: ApiKeyOption = "",
) -> None:
    """Run the verb."""
    with plain_errors("Run the same command again: it goes on where it stopped."):
        settings = Settings()
        label_studio = connect(settings, url, api_key)
        cases = Cases(settings.store.cases_dir)
        with Meter("reading tasks", None) as meter:
            report = sync(
                label_studio,
                cases,
                out_folder,
                project or [],
                wanted_case=case or None,
                tell=meter.advance,
            )
        counts = report.counts
        if not (report.new or report.changed or report.gone):
            out.print(f"nothing new ({report.looked_at} tasks looked at)")
        else:
            out.print(f"{report.new} new, {report.changed} changed, {report.gone} gone")
        out.print(
            f"{out_folder}: {counts['annotations']} annotations = {counts['samples']} samples "
            f"({counts['train']} train, {counts['test']} test) + {counts['rejected']} rejected"
        )
        out.print(
            f"drafts: {counts['accepted']} accepted, {counts['corrected']} corrected; "
            f"without a draft: {counts['written']}"
        )
        for gate, count in counts["rejected_by"].items():
            out.print(f"rejected by {escape(gate)}: {count}, see {out_folder / 'rejected.jsonl'}")
        out.print(
            f"Next: train on {out_folder / 'messages.jsonl'} (or alpaca.jsonl); *.test.jsonl is held out"
        )


if __name__ == "__main__":
    cli()
