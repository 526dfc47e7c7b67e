"""List what gates stopped, with the reasons, and send a gate's tasks back to their annotators.

Without a gate it only counts. With one it lists the annotations, writes the reason into each task's
`draft_status`, which configs that have `$draft_status` show above the task, and keeps a saved tab "Sent
back" in the project. Annotators open the tab, correct their annotation and update it; the next
draftloop sync takes it in. Sending a gate back again takes its reason off the tasks that are mended.

    draftloop requeue --out dataset/
    draftloop requeue --out dataset/ --gate obeys_rules --list
    draftloop requeue --out dataset/ --gate obeys_rules
"""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import ApiKeyOption, Meter, UrlOption, connect, out, plain_errors
from draftloop.labelstudio import SENT_BACK_TAB
from draftloop.review.queues import send_back, stopped_by
from draftloop.settings import Settings

cli = app()


@cli.command(cls=Verb, help=__doc__)
def main(
    out_folder: Annotated[Path, typer.Option("--out", help="The dataset's folder.")] = Path("dataset"),
    gate: Annotated[str, typer.Option(help="Gate whose tasks are sent back.")] = "",
    only_list: Annotated[bool, typer.Option("--list", help="Only list them.")] = False,
    url: UrlOption = "",
    api_key: ApiKeyOption = "",
) -> None:
    """Run the verb."""
    with plain_errors("Run the same command again: it goes on where it stopped."):
        if not gate:
            stopped = sorted(Counter(one.gate for one in stopped_by(out_folder)).items())
            for name, count in stopped:
                out.print(f"{escape(name)}: {count}")
            next_step = f"Next: draftloop requeue --out {out_folder} --gate NAME"
            out.print(next_step if stopped else "Nothing was stopped.")
            return
        for one in stopped_by(out_folder, gate):
            out.print(f"task {one.task}, annotation {one.annotation}: {escape(one.reason)}")
        if only_list:
            return
        label_studio = connect(Settings(), url, api_key)
        with Meter("writing reasons into tasks", None) as meter:
            sent = send_back(label_studio, out_folder, gate, progress=meter)
        out.print(
            f"{sent.tasks} tasks are sent back ({sent.written} written just now); {sent.cleared} are mended"
        )
        out.print(
            f"Next: annotators work through the tab '{SENT_BACK_TAB}', then draftloop sync --out {out_folder}"
        )
