"""Make a project, or attach to one: labelling config, ML backend, webhook, saved tabs.

Running it again changes nothing that is already right. Basic auth comes from BACKEND_USER and
BACKEND_PASSWORD, the backend's own settings.

    scripts/setup_project --case complaint
    scripts/setup_project --case complaint --title "Complaints, March" --backend-url http://drafts:9090
    scripts/setup_project --project 7 --case flight_booking
    scripts/setup_project --config my.xml --title "My forms"
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from backend.edge.cases import Cases, read
from backend.settings import Settings
from scripts.terminal import ApiKeyOption, UrlOption, Verb, app, connect, out, plain_errors

cli = app()
_EMPTY = {"<View/>", "<View></View>"}  # the config of a project that was made and never configured


@cli.command(cls=Verb, help=__doc__)
def main(
    case: Annotated[str, typer.Option(help="Case of label_config/ (CASES_DIR) that drafts the tasks.")] = "",
    config: Annotated[
        Path | None, typer.Option(help="Labelling config (XML) to use instead of the case's.")
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the project; the case's name if not given.")] = "",
    project: Annotated[
        int, typer.Option(help="Attach to this project; its config stays unless --config.")
    ] = 0,
    backend_url: Annotated[
        str, typer.Option(help="The backend, as Label Studio reaches it.")
    ] = "http://127.0.0.1:9090",
    backend: Annotated[bool, typer.Option(help="Connect the backend and its webhook.")] = True,
    url: UrlOption = "",
    api_key: ApiKeyOption = "",
) -> None:
    """Run the verb."""
    if not (case or config or project):
        raise typer.BadParameter("Say what to set up: --case, --config or --project.")
    if not (title or case or project):
        raise typer.BadParameter("--config needs a --title (or --project).")
    with plain_errors("Run the same command again: what is done already stays."):
        settings = Settings()
        cases = Cases(settings.store.cases_dir)
        xml = read(config) if config else cases.config(case) if case else ""
        if xml:
            cases.find(xml, case or None)  # an unsupported tag is refused before anything is made
        label_studio = connect(settings, url, api_key)

        found = label_studio.project(project) if project else label_studio.find_project(title or case)
        made = found is None
        target = found or label_studio.create_project(title or case, xml)
        say = f"made, {label_studio.url}/projects/{target.id}" if made else "already there"
        out.print(f"project   {target.id} '{escape(target.title)}' {say}")

        is_empty = "".join(target.label_config.split()) in _EMPTY
        chosen = cases.find(xml if made or config or is_empty else target.label_config, case or target.case)
        if not made and xml and (config or is_empty) and target.label_config != xml:
            label_studio.set_label_config(target, xml)
            out.print("config    updated")
        else:
            out.print(f"config    {'made' if made else 'already there'}")
        out.print(
            f"case      {chosen.name}: {', '.join(control.name for control in chosen.labelling.controls)}"
        )

        if backend:
            outcomes = label_studio.connect_backend(
                target,
                backend_url,
                user=settings.backend.user,
                password=settings.backend.password.get_secret_value(),
                extra_params={"case": chosen.name} if chosen.name in cases.names() else {},
                interactive=bool(chosen.labelling.prompts or chosen.labelling.program),
            )
            for what, outcome in outcomes.items():
                out.print(f"{what:<9} {outcome}: {backend_url}{'/webhook' if what == 'webhook' else ''}")
        for tab, outcome in label_studio.keep_tabs(
            target, shows_status=chosen.labelling.shows_status
        ).items():
            out.print(f"tab       {outcome}: {tab}")
        if not chosen.labelling.shows_status:
            out.print(
                "note      the config has no $draft_status: reasons are in the records, not in the page"
            )
        if chosen.labelling.prompts:
            out.print("redraft   with Auto-Annotation on, Shift+Enter in the prompt box drafts a task anew")
        out.print(f"Next: scripts/import_tasks --project {target.id} FILE")


if __name__ == "__main__":
    cli()
