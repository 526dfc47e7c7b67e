"""Freeze the corrections of a dataset in a snapshot, for prompts to show those that are most like a task.

Takes only samples for training that passed every gate, never one that a dataset holds out, and the newest
5000 of each case. The snapshot is a folder below --out, named by its content, that never changes; nothing is
shown before EXAMPLES names it. Backend and verbs then draft under a new version, until EXAMPLES names
another one, or none. The same dataset gives the same snapshot: a second run writes nothing.

    scripts/freeze_examples dataset/
    scripts/freeze_examples draftloop-flywheel/7/dataset draftloop-flywheel/8/dataset
    export EXAMPLES=draftloop-examples/3f1c0a9b5d2e EXAMPLES_SHOWN=3
"""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from backend.edge.examples import MOST, freeze
from backend.edge.folder import locked
from backend.records import samples_of
from scripts.terminal import Verb, app, out, plain_errors

cli = app()


@cli.command(cls=Verb, help=__doc__)
def main(
    dataset: Annotated[list[Path], typer.Argument(help="Folders that scripts/sync wrote.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Where the snapshots are.")] = Path(
        "draftloop-examples"
    ),
    most: Annotated[int, typer.Option(min=1, help="Samples of a case at most: the newest.")] = MOST,
) -> None:
    """Run the verb."""
    with plain_errors("Run the same command again."):
        read = [samples_of(folder) for folder in dataset]
        with locked(out_folder, "freezing"):
            frozen = freeze(
                out_folder,
                chain.from_iterable(samples for _, samples in read),
                [about for about, _ in read],
                most=most,
            )
        for case, count in frozen.counts.items():
            out.print(escape(f"{case}: {count} samples"))
        out.print(f"{frozen.folder} is written" if frozen.new else f"nothing new: {frozen.folder} is there")
        out.print(f"Next: set EXAMPLES={frozen.folder}, restart the backend, then scripts/prelabel")


if __name__ == "__main__":
    cli()
