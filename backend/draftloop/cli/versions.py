"""Look up what a prediction was made with: its version, and all that the version stands for.

Every prediction in Label Studio carries a version, `<model>-<hash>`. The backend's ledger (LEDGER_URL) keeps
what each one was: model, prompt profile, the prompt's words, both schemas with their rules, the hash of the
labelling config, sampling, what the project wanted otherwise. It keeps what came of each task, too.

    draftloop versions                                  all of them, oldest first
    draftloop versions --project 7                      those of one project
    draftloop versions show tiny-qwen3-0123456789       one of them, whole
    draftloop versions --task 17                        what came of a task, in each version
    draftloop versions --task 17 --json                 the same for other programs; works with the others too

Reads the ledger alone: neither Label Studio nor the model needs to run.
"""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape

from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import out, plain_errors
from draftloop.errors import SetupError
from draftloop.ledger.sqlite import KeptDraft, KeptVersion, Ledger
from draftloop.settings import Settings

cli = app()


class VersionsAction(StrEnum):
    """What to do with versions."""

    list = "list"
    show = "show"


@cli.command(cls=Verb, help=__doc__)
def main(
    what: Annotated[VersionsAction, typer.Argument(help="List them, or show one.")] = VersionsAction.list,
    version: Annotated[str, typer.Argument(help="The version to show.")] = "",
    task: Annotated[int, typer.Option(help="What came of this task (its number in Label Studio).")] = 0,
    project: Annotated[int, typer.Option(help="Only of this project; 0 is all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the verb."""
    if (what is VersionsAction.show) != bool(version):
        raise typer.BadParameter("Say which: draftloop versions show VERSION.")
    if version and task:
        raise typer.BadParameter("Either a version or a task.")
    with plain_errors("Run the same command again."):
        ledger = Ledger(Settings().store.ledger_url, existing=True)
        if task:
            drafts = ledger.drafts_of(task, project or None)
            if not drafts:
                raise SetupError(
                    f"The ledger knows no draft of task {task}{f' in project {project}' if project else ''}.",
                    hint="Its number stands in the task's address; LEDGER_URL must be the backend's.",
                )
            _print([draft._asdict() for draft in drafts] if as_json else [_draft(draft) for draft in drafts])
            return
        rows = ledger.version_rows(project or None)
        if version:
            row = next((row for row in rows if row.version == version), None)
            if row is None:
                raise SetupError(
                    f"The ledger knows no version '{version}'.", hint="draftloop versions lists them."
                )
            _print(row._asdict() if as_json else [_whole(row)])
            return
        _print([row._asdict() for row in rows] if as_json else [_line(row) for row in rows])
        if not (rows or as_json):
            out.print("no versions yet: they come with the first /setup or draft")


def _print(reply: Any) -> None:
    if isinstance(reply, list) and all(isinstance(entry, str) for entry in reply):
        for entry in reply:
            out.print(escape(entry))
    else:
        out.out(json.dumps(reply, ensure_ascii=False, indent=2))


def _line(row: KeptVersion) -> str:
    manifest = row.manifest
    projects = ", ".join(map(str, row.projects)) or "none"
    return (
        f"{row.version}  since {row.first_used}  projects {projects}  {row.drafts} drafts  "
        f"case {manifest.get('case')}  profile {manifest.get('profile')}{_otherwise(manifest)}"
    )


def _otherwise(manifest: dict[str, Any]) -> str:
    return f"  otherwise {', '.join(manifest['overrides'])}" if manifest.get("overrides") else ""


def _whole(row: KeptVersion) -> str:
    manifest = dict(row.manifest)
    prompt = manifest.pop("prompt", [])
    rest = {key: json.dumps(part, ensure_ascii=False, indent=2) for key, part in manifest.items()}
    parts = [_line(row), *(f"{key}: {part}" for key, part in rest.items())]
    return "\n".join([*parts, *(f"--- prompt, {role}:\n{words}" for role, words in prompt)])


def _draft(draft: KeptDraft) -> str:
    lines = [f"project {draft.project}  {draft.version}  {draft.status}  {draft.drafted}"]
    lines += [f"  reason  {reason}" for reason in draft.reasons]
    return "\n".join([*lines, f"  raw     {draft.raw}"])
