"""Write the generated parts of the docs from the code, or check that they are up to date.

So far that is the settings table of README.md.

    scripts/docs              write them
    scripts/docs --check      change nothing; exit 1 where one is out of date
"""

import re
from typing import Annotated

import typer

from backend.settings import ROOT, variables
from scripts.terminal import Verb, app, err, out

cli = app()
README = ROOT / "README.md"


def settings_table() -> str:
    """Give the table of environment variables."""
    rows = ["| variable | default | what it is |", "| --- | --- | --- |"]
    for name, default, words in variables():
        rows.append(f"| `{name}` | {f'`{default}`' if default else ''} | {words} |")
    return "\n".join(rows)


PARTS = {"settings": settings_table}


def generated(text: str) -> str:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`."""
    for name, make in PARTS.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        words = make()
        text = pattern.sub(lambda found, words=words: f"{found[1]}{words}\n{found[2]}", text)  # type: ignore[misc]
    return text


@cli.command(cls=Verb, help=__doc__)
def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if out of date.")] = False,
) -> None:
    """Run the verb."""
    before = README.read_text(encoding="utf-8")
    after = generated(before)
    if before == after:
        out.print("README.md is up to date")
    elif check:
        err.print("README.md is out of date. Run: scripts/docs")
        raise typer.Exit(1)
    else:
        README.write_text(after, encoding="utf-8")
        out.print("README.md written")


if __name__ == "__main__":
    cli()
