"""Write the generated parts of the docs from the code, or check that they are up to date.

    README.md          the settings table
    docs/configs.md    every control's value, and which of Label Studio's templates work or why not
    docs/dataset.md    the gates and the formats of a dataset
    docs/train.md      the keys of a recipe

    scripts/docs              write them
    scripts/docs --check      change nothing; exit 1 where one is out of date

The templates are those of the installed Label Studio; without it, their table stays as it is.
"""

import inspect
import json
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import err, out
from draftloop.dataset.code_gates import CODE_GATES, CODE_NOTES
from draftloop.dataset.corpus import CORPUS_GATES
from draftloop.dataset.formats import FORMATS
from draftloop.dataset.gates import NOTES, SAMPLE_GATES
from draftloop.dataset.sample import Gate
from draftloop.errors import SetupError
from draftloop.labelling.labelling import CONTROLS, compile_labelling
from draftloop.settings import variables
from draftloop.support.environments import ROOT, NotInstalledError
from draftloop.training.recipe import Recipe
from scripts.templates import templates

cli = app()
FILES = (ROOT / "README.md", *(ROOT / "docs" / name for name in ("configs.md", "dataset.md", "train.md")))


def settings_table() -> str:
    """Give the table of environment variables."""
    rows = ["| variable | default | what it is |", "| --- | --- | --- |"]
    for name, default, words in variables():
        rows.append(f"| `{name}` | {f'`{default}`' if default else ''} | {words} |")
    return "\n".join(rows)


def controls_table() -> str:
    """Give what each control's value is: the first paragraph of its codec."""
    rows = ["| tag | value |", "| --- | --- |"]
    for control in CONTROLS:
        words = inspect.getdoc(control) or ""
        tag, _, value = " ".join(words.split("\n\n")[0].split()).partition(": ")
        rows.append(f"| {tag} | {value[:1].upper()}{value[1:]} |")
    return "\n".join(rows)


def templates_table() -> str | None:
    """Give for each template what a draft of it holds, or why there is none; None without Label Studio."""
    try:
        found = templates()
    except NotInstalledError:
        return None
    rows = ["| template | | a draft holds, or why there is none |", "| --- | --- | --- |"]
    for name, template in found.items():
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
    """Give what each gate does, in the order in which they look: the first line of its function."""
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
    """Give who reads each format: the first line of its function."""
    rows = ["| format | what it is |", "| --- | --- |"]
    return "\n".join([*rows, *(f"| `{form.name}` | {_first_line(form.rows)} |" for form in FORMATS)])


def recipe_table() -> str:
    """Give the keys of a training recipe as YAML has them, with their defaults."""
    rows = ["| key | default | what it is |", "| --- | --- | --- |"]
    for name, default in Recipe().model_dump(mode="json").items():
        words = Recipe.model_fields[name].description
        rows.append(f"| `{name}` | `{json.dumps(default).replace(chr(34), '')}` | {words} |")
    return "\n".join(rows)


def _first_line(function: Callable[..., object]) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]


PARTS = {
    "gates": gates_table,
    "formats": formats_table,
    "settings": settings_table,
    "controls": controls_table,
    "templates": templates_table,
    "recipe": recipe_table,
}


def generated(text: str) -> str:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`."""
    for name, make in PARTS.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        words = make() if pattern.search(text) else None
        if words is not None:
            text = pattern.sub(lambda found, words=words: f"{found[1]}{words}\n{found[2]}", text)  # type: ignore[misc]
    return text


@cli.command(cls=Verb, help=__doc__)
def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if out of date.")] = False,
) -> None:
    """Run the verb."""
    late = []
    for file in FILES:
        before = file.read_text(encoding="utf-8")
        after = generated(before)
        name = file.relative_to(ROOT)
        if before == after:
            out.print(f"{name} is up to date")
        elif check:
            late.append(str(name))
        else:
            file.write_text(after, encoding="utf-8")
            out.print(f"{name} written")
    if late:
        err.print(f"{', '.join(late)} out of date. Run: scripts/docs")
        raise typer.Exit(1)


if __name__ == "__main__":
    cli()
