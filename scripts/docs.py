"""Write the generated parts of the docs, check that they are up to date, or build the docs' site.

    docs/reference/settings.md     every environment variable
    docs/reference/verbs.md        the help of every verb
    docs/reference/http.md         the backend's paths, who may call them, and its metrics
    docs/reference/configs.md      every control's value, and which of Label Studio's templates work
    docs/reference/dataset.md      the gates and the formats of a dataset
    docs/reference/recipe.md       the keys of a training's recipe
    docs/decisions/index.md        the list of decisions

    scripts/docs                   write them
    scripts/docs --check           change nothing; exit 1 where one is out of date
    scripts/docs --site            build the site into site/ with MkDocs; a broken link is an error
    scripts/docs --site --out DIR  the same into another folder, whose content is replaced

The templates are those of the installed Label Studio; without it, their table stays as it is. The site is
built in the environment `docs`, without network, and its pages load nothing from elsewhere.
"""

import inspect
import json
import os
import re
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import prometheus_client
import typer

from draftloop.cli.commands import Verb, app
from draftloop.cli.main import PANELS
from draftloop.cli.terminal import err, out
from draftloop.dataset.code_gates import CODE_GATES, CODE_NOTES
from draftloop.dataset.corpus import CORPUS_GATES
from draftloop.dataset.formats import FORMATS
from draftloop.dataset.gates import NOTES, SAMPLE_GATES
from draftloop.dataset.sample import Gate
from draftloop.errors import SetupError
from draftloop.labelling.labelling import CONTROLS, compile_labelling
from draftloop.serving import protocol, web
from draftloop.serving.metrics import Metrics
from draftloop.settings import variables
from draftloop.support.environments import ROOT, SETUP, NotInstalledError, find_environment
from draftloop.training.recipe import Recipe
from scripts.templates import templates

cli = app()
DOCS = ROOT / "docs"
HELP_COLUMNS = 100
# What each endpoint of the backend does. An endpoint without an entry stops the verb.
PATHS = {
    "root": "Say that the backend is alive; asks nobody.",
    "health": "The same.",
    "ready": "Ask the model server too; with the main login, name what must change. 503 if it cannot draft.",
    "setup": "Take in a project's labelling config and extra params; return the version of its drafts.",
    "predict": "Draft tasks: exactly one item for each task, in order, within `BACKEND_DEADLINE_S`.",
    "webhook": "Take note of an event of Label Studio; with the main login, start a training.",
    "versions": "List the versions of drafts; `?project=7` those of one project.",
    "jobs": "List trainings, newest first, and what came of them; `?project=7` those of one project.",
    "metrics": "Show metrics in Prometheus's text format.",
    "run": "Show a run of code: every attempt with its output, and its files.",
    "file": "Send a file of a run; `?name=` says how it is shown and saved.",
}


def settings_table() -> str:
    """Return the table of environment variables."""
    rows = ["| variable | default | what it is |", "| --- | --- | --- |"]
    for name, default, words in variables():
        rows.append(f"| `{name}` | {f'`{default}`' if default else ''} | {words} |")
    return "\n".join(rows)


def controls_table() -> str:
    """Return what each control's value is: the first paragraph of its codec."""
    rows = ["| tag | value |", "| --- | --- |"]
    for control in CONTROLS:
        words = inspect.getdoc(control) or ""
        tag, _, value = " ".join(words.split("\n\n")[0].split()).partition(": ")
        rows.append(f"| {tag} | {value[:1].upper()}{value[1:]} |")
    return "\n".join(rows)


def templates_table() -> str | None:
    """Return for each template what a draft of it holds, or why there is none; None without Label Studio."""
    try:
        shipped = templates()
    except NotInstalledError:
        return None
    rows = ["| template | | a draft holds, or why there is none |", "| --- | --- | --- |"]
    for name, template in shipped.items():
        try:
            labelling = compile_labelling(template.config)
        except SetupError as error:
            words = re.sub(r"(<\w+>)", r"`\1`", error.message.replace("|", "/"))
            rows.append(f"| {name} | no | {words} |")
            continue
        keys = ", ".join(f"`{control.name}`" for control in labelling.controls)
        blind = any(source.tag == "Image" for source in labelling.sources)
        rows.append(
            f"| {name} | yes | {keys}{' (the model reads the addresses of images)' if blind else ''} |"
        )
    return "\n".join(rows)


def gates_table() -> str:
    """Return what each gate does, in the order in which they look: the first line of its function."""
    rows = ["| gate | what it does |", "| --- | --- |"]
    gates: tuple[Gate[Any, Any], ...] = (
        *SAMPLE_GATES,
        *CODE_GATES,
        *CORPUS_GATES,
        *NOTES,
        *CODE_NOTES,
    )
    return "\n".join([*rows, *(f"| `{gate.name}` | {_first_line(gate.check)} |" for gate in gates)])


def formats_table() -> str:
    """Return who reads each format: the first line of its function."""
    rows = ["| format | what it is |", "| --- | --- |"]
    return "\n".join([*rows, *(f"| `{form.name}` | {_first_line(form.rows)} |" for form in FORMATS)])


def recipe_table() -> str:
    """Return the keys of a training recipe as YAML has them, with their defaults."""
    rows = ["| key | default | what it is |", "| --- | --- | --- |"]
    for name, default in Recipe().model_dump(mode="json").items():
        words = Recipe.model_fields[name].description
        rows.append(f"| `{name}` | `{json.dumps(default).replace(chr(34), '')}` | {words} |")
    return "\n".join(rows)


def verbs_text() -> str:
    """Return the help of every verb, as the terminal shows it, in the groups of `draftloop --help`."""
    parts = []
    for panel, commands in PANELS.items():
        parts.append(f"## {panel}")
        for name, words in commands:
            parts += [
                f"### draftloop {name}",
                f"{words}.",
                *(f"```text\n{text}\n```" for text in _help_of(name)),
            ]
    return "\n\n".join(parts)


def paths_table() -> str:
    """Return the backend's paths: how they are asked, by whom, and what they do."""
    unused: Any = object()
    app = web.WebApp(protocol.ProtocolServer(unused, unused, unused, unused), artifacts=unused)
    rows = ["| path | method | opens to | what it does |", "| --- | --- | --- | --- |"]
    for rule in app.wsgi().url_map.iter_rules():
        methods = ", ".join(sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}))
        roles = web._ROLES.get(rule.endpoint, web._MAIN)  # noqa: SLF001  who may call is nobody's else
        who = "everybody" if rule.endpoint in web._OPEN else ", ".join(sorted(roles))  # noqa: SLF001
        rows.append(f"| `{rule.rule}` | {methods} | {who} | {PATHS[rule.endpoint]} |")
    return "\n".join(rows)


def metrics_table() -> str:
    """Return what `/metrics` counts and times, without the metrics of the process itself."""
    rows = ["| metric | kind | what it is |", "| --- | --- | --- |"]
    names: dict[str, Any] = vars(Metrics())
    for metric in names.values():
        if not isinstance(metric, prometheus_client.metrics.MetricWrapperBase):
            continue
        (family,) = metric.describe()
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001  it has no other name
        name = f"{family.name}{'_total' if family.type == 'counter' else ''}"
        rows.append(f"| `{name}` | {family.type} | {family.documentation}{labels and f' By {labels}.'} |")
    return "\n".join(rows)


def decisions_list() -> str:
    """Return links to the decisions, by number."""
    pages = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    titles = [page.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ") for page in pages]
    return "\n".join(
        f"- [{page.name[:4]}: {re.sub(r'^[0-9]+[.:] ', '', title)}]({page.name})"
        for page, title in zip(pages, titles, strict=True)
    )


def _help_of(name: str) -> list[str]:
    """Return the help of a verb and of the commands below it."""
    if name == "setup":  # a shell script
        surroundings = {"PATH": os.environ["PATH"], "HOME": "/"}
        words = subprocess.run(
            ["bash", str(SETUP), "--help"], env=surroundings, capture_output=True, text=True, check=True
        ).stdout
        return [words.replace("scripts/setup", "draftloop setup").strip()]
    verb: Any = typer.main.get_command(import_module(f"draftloop.cli.{name.replace('-', '_')}").cli)
    below = getattr(verb, "commands", {})
    commands = [
        (f"draftloop {name}", verb),
        *((f"draftloop {name} {key}", each) for key, each in below.items()),
    ]
    texts = []
    for title, command in commands:
        for option in command.params:  # a path of this checkout is shown as it is from its root
            if isinstance(option.default, Path) and option.default.is_relative_to(ROOT):
                option.default = option.default.relative_to(ROOT)
        context = command.context_class(command, info_name=title, terminal_width=HELP_COLUMNS)
        lines = command.get_help(context).splitlines()
        texts.append("\n".join(line.rstrip() for line in lines).strip())
    return texts


def _first_line(function: Callable[..., object]) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]


PARTS = {
    "gates": gates_table,
    "formats": formats_table,
    "settings": settings_table,
    "controls": controls_table,
    "templates": templates_table,
    "recipe": recipe_table,
    "verbs": verbs_text,
    "paths": paths_table,
    "metrics": metrics_table,
    "decisions": decisions_list,
}


def generated(text: str) -> str:
    """Replace the text between `<!-- NAME -->` and `<!-- /NAME -->`."""
    for name, make in PARTS.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        words = make() if pattern.search(text) else None
        if words is not None:
            text = pattern.sub(lambda match, words=words: f"{match[1]}{words}\n{match[2]}", text)  # type: ignore[misc]
    return text


def pages() -> dict[Path, str]:
    """Return the pages with generated parts, as they should be."""
    texts = {page: page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
    return {
        page: generated(text)
        for page, text in texts.items()
        if re.search(r"^<!-- /\w+ -->$", text, re.MULTILINE)
    }


def build_site(folder: Path) -> int:
    """Build the site into a folder and return MkDocs's exit status: 1 where a link is broken.

    Raises:
        SetupError: The folder holds something else, which MkDocs would delete.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "sitemap.xml").is_file():
        raise SetupError(f"{folder} holds something else than a site.", hint="Name an empty or a new folder.")
    try:
        environment = find_environment("docs")
    except NotInstalledError:
        code = subprocess.run(["bash", str(SETUP), "docs"], check=False).returncode
        if code:
            return code
        environment = find_environment("docs")
    command = [str(environment / "bin" / "python"), "-P", "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(folder.resolve())]
    # Its own packages alone, no questions to other hosts, and no advice on which MkDocs to use next.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    surroundings = {**kept, "PYTHONNOUSERSITE": "1", "NO_MKDOCS_2_WARNING": "1"}
    # Not --quiet, with which MkDocs does not count its warnings: a broken link would pass.
    built = subprocess.run(command, env=surroundings, cwd=ROOT, capture_output=True, text=True, check=False)
    if built.returncode:
        lines = (built.stdout + built.stderr).splitlines()
        err.print("\n".join(line for line in lines if not line.startswith("INFO")), markup=False)
    return built.returncode


@cli.command(cls=Verb, help=__doc__)
def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if out of date.")] = False,
    site: Annotated[bool, typer.Option("--site", help="Build the site instead.")] = False,
    folder: Annotated[Path, typer.Option("--out", help="Where the site goes.")] = Path("site"),
) -> None:
    """Run the verb."""
    if site:
        try:
            code = build_site(folder)
        except SetupError as error:
            err.print(f"{error.message} {error.hint}")
            raise typer.Exit(1) from error
        if not code:
            out.print(f"Written: {folder / 'index.html'}")
        raise typer.Exit(code)
    late = []
    for page, text in pages().items():
        name = page.relative_to(ROOT)
        if page.read_text(encoding="utf-8") == text:
            out.print(f"{name} is up to date")
        elif check:
            late.append(str(name))
        else:
            page.write_text(text, encoding="utf-8")
            out.print(f"{name} written")
    if late:
        err.print(f"{', '.join(late)} out of date. Run: scripts/docs")
        raise typer.Exit(1)


if __name__ == "__main__":
    cli()
