"""Have a second human check a share of a dataset, in a review project that shows no draft and no names.

The first time, say the share: it is drawn, the project is made, and the dataset remembers both. A drawn
sample is held back until somebody else than its annotator submits `pass` for it in that project and
draftloop sync has read it; what needs a fix stays held, and draftloop requeue sends it back. Running this
again adds the samples that were drawn since.

    draftloop spot-check --out dataset/ --share 0.05
    draftloop spot-check --out dataset/
"""

from pathlib import Path
from typing import Annotated

import typer

from draftloop.app.execution import make_reruns
from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import ApiKeyOption, Meter, UrlOption, connect, out, plain_errors
from draftloop.dataset.sync import sync
from draftloop.prompting.cases import Cases
from draftloop.review.queues import open_spot_check
from draftloop.settings import Settings

cli = app()


@cli.command(cls=Verb, help=__doc__)
def main(
    out_folder: Annotated[Path, typer.Option("--out", help="The dataset's folder.")] = Path("dataset"),
    share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share that is drawn; 0.05 is 5 %, 0 is none.")
    ] = None,
    url: UrlOption = "",
    api_key: ApiKeyOption = "",
) -> None:
    """Run the verb."""
    with plain_errors("Run the same command again: it goes on where it stopped."):
        settings = Settings()
        label_studio = connect(settings, url, api_key)
        cases = Cases(settings.store.cases_dir)
        reruns = make_reruns(settings)  # one for both: a sandbox is started once
        decided = {} if share is None else {"spot_check": share}
        with Meter() as meter:
            sync(label_studio, cases, out_folder, changes=decided, make_reruns=lambda: reruns, progress=meter)
        opened = open_spot_check(label_studio, out_folder)
        number = opened.project.id
        counts = sync(
            label_studio, cases, out_folder, changes={"reviews": number}, make_reruns=lambda: reruns
        ).counts
        held = counts["stopped_by"].get("spot_checked", 0)
        out.print(f"{opened.waiting} samples wait for a second human; {opened.sent} of them came just now")
        out.print(
            f"{counts['samples']} samples stay, spot_checked holds {held}; see {out_folder}/report.html"
        )
        out.print(
            f"Next: judge them in {label_studio.url}/projects/{number}, then "
            f"draftloop sync --out {out_folder}"
        )
