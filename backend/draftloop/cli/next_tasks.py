"""List the tasks to label next: those whose drafts are least certain, and no two that are much alike.

Ranks the tasks that nobody has begun by the scores of their drafts (what broke a rule comes first, what has
no draft last) and by how alike their texts are, writes the place of the first ones into their data as
`label_next`, and keeps a saved tab "Label next" in that order. What is submitted or skipped leaves the tab.
Running it again replaces the order; scores change when the model does. --random gives an order that knows
nothing of the tasks: better to begin with where the model is new to them and unsure of all (measured, in
docs/how-to/flywheel.md).

    draftloop next-tasks --project 1
    draftloop next-tasks --project 1 --count 500 --seed 3
"""

from typing import Annotated

import typer

from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import ApiKeyOption, Meter, ProjectOption, UrlOption, connect, out, plain_errors
from draftloop.labelstudio import NEXT_TAB
from draftloop.review.queues import Queue, put_next
from draftloop.settings import Settings

cli = app()


@cli.command(cls=Verb, help=__doc__)
def main(
    project: ProjectOption,
    count: Annotated[int, typer.Option(min=1, max=100_000, help="How many tasks get a place.")] = 200,
    seed: Annotated[int, typer.Option(help="Decides between equals, and the order of --random.")] = 0,
    chance: Annotated[bool, typer.Option("--random", help="In an order by chance instead.")] = False,
    url: UrlOption = "",
    api_key: ApiKeyOption = "",
) -> None:
    """Run the verb."""
    again = "Run the same command again: it goes on where it stopped."
    with plain_errors(again), connect(Settings(), url, api_key) as label_studio:
        with Meter("reading tasks, writing their places", None) as meter:
            queue = put_next(label_studio, project, count, seed=seed, chance=chance, progress=meter)
        out.print(
            f"{len(queue.ranked)} of {queue.unbegun} tasks that nobody has begun have a place "
            f"({queue.written} written or taken away just now)"
        )
        for reason in _reasons(queue):
            out.print(reason)
        where = f"{label_studio.url}/projects/{project}"
        if not queue.ranked:
            out.print(f"Next: draftloop import-tasks --project {project} FILE")
            return
        out.print(
            f"Next: open the tab '{NEXT_TAB}' at {where}, and in it 'Label Tasks As Displayed' "
            "(the arrow beside 'Label All Tasks')"
        )


def _reasons(queue: Queue) -> list[str]:
    scores = [one.score for one in queue.ranked if one.score is not None]
    broken = sum(not score for score in scores)
    sound = [score for score in scores if score]
    undrafted = len(queue.ranked) - len(scores)
    said = []
    if broken:
        said.append(f"{broken:5}  whose draft broke a rule, or is none")
    if sound:
        said.append(f"{len(sound):5}  with drafts of score {min(sound):.2f} to {max(sound):.2f}")
    if undrafted:
        said.append(f"{undrafted:5}  without a draft: draftloop prelabel gives them one, and a score")
    return said
