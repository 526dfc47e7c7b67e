"""Freeze the corrections of a dataset in a snapshot, for prompts to show those that are most like a task.

Takes only samples for training that passed every gate, never one that a dataset holds out, and the newest
5000 of each case. The snapshot is a folder below --out, named by its content, that never changes; nothing is
shown before EXAMPLES names it. Backend and verbs then draft under a new version, until EXAMPLES names
another one, or none. The same dataset gives the same snapshot: a second run writes nothing.

With --measure, MODEL_NAME drafts what the datasets hold out, without corrections in its prompts and with
EXAMPLES_SHOWN of them: whether they make drafts better depends on the model and on the kind of task.

    draftloop freeze-examples dataset/
    draftloop freeze-examples dataset/ --measure
    draftloop freeze-examples draftloop-flywheel/7/dataset draftloop-flywheel/8/dataset
    export EXAMPLES=draftloop-examples/3f1c0a9b5d2e EXAMPLES_SHOWN=3
"""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from draftloop.cli.commands import Verb, app
from draftloop.cli.drafters import Drafters
from draftloop.cli.terminal import Measuring, connect, out, plain_errors, side_by_side
from draftloop.dataset.folder import locked
from draftloop.dataset.records import samples_of
from draftloop.drafting.examples import MOST, Snapshot, freeze
from draftloop.evaluation.measures import MIN_GROUPS, figures, gain
from draftloop.flywheel.heldout import HeldOutSamples, measure
from draftloop.prompting.prompt import Overrides
from draftloop.settings import Settings

cli = app()


@cli.command(cls=Verb, help=__doc__)
def main(
    dataset: Annotated[list[Path], typer.Argument(help="Folders that draftloop sync wrote.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Where the snapshots are.")] = Path(
        "draftloop-examples"
    ),
    most: Annotated[int, typer.Option(min=1, help="Samples of a case at most: the newest.")] = MOST,
    measured: Annotated[
        bool, typer.Option("--measure", help="Then draft what is held out, without them and with them.")
    ] = False,
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
        if measured:
            _measure(Settings(), dataset, frozen.folder)
        out.print(f"Next: set EXAMPLES={frozen.folder}, restart the backend, then draftloop prelabel")


def _measure(settings: Settings, datasets: Sequence[Path], snapshot: Path) -> None:
    """Draft what the datasets hold out in both ways, and tell how right that was."""
    with ExitStack() as stack:
        key = settings.label_studio.api_key.get_secret_value()
        label_studio = stack.enter_context(connect(settings, "", "")) if key else None
        drafters = stack.enter_context(Drafters(settings))
        drafters.model.check_served(settings.model.name, timeout_s=10)
        without = drafters.showing(None)
        shown = drafters.showing(Snapshot(snapshot, shown=settings.store.examples_shown))
        read = HeldOutSamples(drafters.cases, label_studio).read
        for folder, name, held in [(at, *entry) for at in datasets for entry in read(at).items()]:
            texts = len({row.sample.group for row in held.rows})
            out.print(f"{escape(name)}: {len(held.rows)} held-out samples of {texts} texts in {folder}")
            if texts < MIN_GROUPS:
                out.print(f"  an interval needs {MIN_GROUPS}: correct more tasks and sync again")
                continue
            progress = Measuring()
            before, after = (
                [
                    measured.outcome
                    for measured in measure(drafter, held, Overrides(), f"{name}, {way}", progress)
                ]
                for drafter, way in ((without, "without corrections"), (shown, "with corrections"))
            )
            difference = gain(before, after)
            for line in side_by_side(figures(before), figures(after), difference._asdict()):
                out.print(line)
