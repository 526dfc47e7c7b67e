"""Make a project, or attach to one: labelling config, ML backend, webhook, saved tabs.

Running it again changes nothing that is already right. Basic auth comes from BACKEND_USER and
BACKEND_PASSWORD, the backend's own settings; the webhook, whose headers every member of Label Studio can
read, gets BACKEND_WEBHOOK_SECRET instead.

    draftloop setup-project --case complaint
    draftloop setup-project --case complaint --title "Complaints, March" --backend-url http://drafts:9090
    draftloop setup-project --project 7 --case flight_booking
    draftloop setup-project --config my.xml --title "My forms"
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import ApiKeyOption, UrlOption, connect, out, plain_errors
from draftloop.errors import SetupError
from draftloop.execution.uploads import Uploads
from draftloop.labelling.labelling import Labelling
from draftloop.labelstudio import LabelStudio, Project
from draftloop.prompting.cases import Cases, read
from draftloop.prompting.prompt import Case
from draftloop.settings import Settings
from draftloop.support.logins import Logins

cli = app()
_EMPTY = {"<View/>", "<View></View>"}  # the config of a project that was made and never configured


@cli.command(cls=Verb, help=__doc__)
def main(  # noqa: PLR0913, PLR0917  # one for each option
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
    webhook: Annotated[
        bool, typer.Option(help="Have Label Studio tell the backend of annotations, as FLYWHEEL_AFTER needs.")
    ] = True,
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
        logins = settings.backend.logins()
        if backend and webhook:
            _need_secret(logins)
        cases = Cases(settings.store.cases_dir)
        xml = read(config) if config else cases.config(case) if case else ""
        # An unsupported tag is refused before anything is made.
        wanted = cases.find(xml, case or None) if xml else None
        label_studio = connect(settings, url, api_key)
        if wanted is not None and wanted.labelling.program:
            # Made before the project, it stands behind it in the list.
            number = Uploads(label_studio.send, label_studio.url).prepare()
            out.print(f"charts    project {number} holds the files of code runs that tasks show")

        known = label_studio.project(project) if project else label_studio.find_project(title or case)
        made = known is None
        target = known or label_studio.create_project(title or case, xml)
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

        for keyword in chosen.labelling.schemas.unenforced:
            out.print(f"note      {escape(str(keyword))}")

        if backend:
            extra_params = {"case": chosen.name} if chosen.name in cases.names() else {}
            _connect(label_studio, target, chosen, backend_url, logins, extra_params, webhook=webhook)
        _keep_tabs(label_studio, target, chosen.labelling)
        out.print(f"Next: draftloop import-tasks --project {target.id} FILE")


def _need_secret(logins: Logins) -> None:
    if logins.user and not logins.webhook_secret:
        raise SetupError(
            "BACKEND_WEBHOOK_SECRET is not set, and every member of Label Studio can read what a webhook "
            "carries.",
            hint="Set it here and for the backend, or use --no-webhook: "
            'python3 -c "import secrets; print(secrets.token_urlsafe(24))"',
        )


def _connect(
    label_studio: LabelStudio,
    project: Project,
    case: Case,
    url: str,
    logins: Logins,
    extra_params: dict[str, str],
    *,
    webhook: bool,
) -> None:
    outcomes = label_studio.connect_backend(
        project,
        url,
        user=logins.user,
        password=logins.password,
        webhook_secret=logins.webhook_secret,
        webhook=webhook,
        extra_params=extra_params,
        interactive=bool(case.labelling.prompts or case.labelling.program),
    )
    for what, outcome in outcomes.items():
        out.print(f"{what:<9} {outcome}: {url}{'/webhook' if what == 'webhook' else ''}")


def _keep_tabs(label_studio: LabelStudio, project: Project, labelling: Labelling) -> None:
    tabs = label_studio.keep_tabs(
        project, shows_status=labelling.shows_status, text_key=next(iter(labelling.keys), "")
    )
    for tab, outcome in tabs.items():
        out.print(f"tab       {outcome}: {tab}")
    if not labelling.shows_status:
        out.print("note      the config has no $draft_status: reasons are in the records, not in the page")
    if labelling.prompts:
        out.print("redraft   with Auto-Annotation on, Shift+Enter in the prompt box drafts a task anew")
