"""Show the whole loop on this machine: Label Studio, vLLM on the CPU with the embedded models, the backends.

Makes three projects of texts and one of code tasks, imports generated tasks whose names and templates the
models never saw, and pre-annotates them; the code of code tasks is run. Then it stays up, for you to log
in and correct, until Ctrl-C. The next run continues with what you did there.

    scripts/demo
    scripts/demo --once --out DIR     unattended: corrects a part through the API, syncs, writes
                                      DIR/summary.json, and stops
    scripts/demo --flywheel           instead: complaints of another kind are drafted, corrected through the
                                      API and trained on; the adapter is promoted, a worse one refused, and
                                      tasks that nobody has begun are drafted again, better; --once stops
                                      then
"""

import json
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from demo.projects import code, flywheel, texts
from demo.projects.stage import USER, Demo
from draftloop.cli.commands import Verb, app
from draftloop.cli.servers import start_label_studio
from draftloop.cli.terminal import err, out, plain_errors
from draftloop.labelstudio import LabelStudio
from draftloop.support.environments import home

cli = app()


@cli.command(cls=Verb, help=__doc__)
def main(
    once: Annotated[bool, typer.Option("--once", help="Run unattended to the end, and stop.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for everything the demo makes; kept between runs.")
    ] = None,
    circle: Annotated[
        bool, typer.Option("--flywheel", help="Show how corrections make the next drafts better.")
    ] = False,
) -> None:
    """Run the verb."""
    with plain_errors("Run the same command again: what is done already stays."), ExitStack() as running:
        demo = Demo((folder or home() / ("flywheel" if circle else "demo")).resolve())
        demo.folder.mkdir(parents=True, exist_ok=True)
        login = demo.login()
        if circle:
            turn(demo, running, login, once=once)
            return
        # They take longest, so they start beside each other and beside Label Studio.
        engine, engine_for_code = (running.enter_context(one(demo)) for one in (texts.engine, code.engine))
        label_studio = start(demo, running, login)
        backend_url = running.enter_context(texts.servers(demo, engine, login["password"]))
        with_code = running.enter_context(code.servers(demo, engine_for_code))
        prepared = texts.prepare(demo, label_studio, backend_url)
        prepared_code = code.prepare(with_code, label_studio)
        if once:
            summary: dict[str, Any] = dict(texts.finish(demo, label_studio, prepared))
            summary[code.CASE] = code.finish(label_studio, prepared_code)
            report(demo, summary)
            return
        exports = [
            f". {demo.settings_file()} && scripts/sync --project {one.project.id} --out dataset/{name}"
            for name, one in prepared.items()
        ]
        exports.append(
            f". {with_code.settings_file('code-settings.sh')} && "
            f"scripts/sync --project {prepared_code.project.id} --out dataset/{code.CASE}"
        )
        links = (
            "Links to whole runs open in the browser that is logged in there by this very address; any other "
            f"browser is asked for user {demo.environment['BACKEND_USER']} and the same password."
        )
        words = "Open a project, then a task: it is filled in. Correct it, submit, and export with"
        rest = (
            "With the settings of these files every other verb works as well, scripts/prelabel for example."
        )
        _stay(label_studio, login, "\n  ".join([f"{links}\n{words}", *exports]) + f"\n{rest}")


def turn(demo: Demo, running: ExitStack, login: dict[str, str], *, once: bool) -> None:
    """Run the whole flywheel, print its figures, and stay up unless `once`."""
    engine = running.enter_context(texts.engine(demo, flywheel.LORA_RANK))
    label_studio = start(demo, running, login)
    demo.environment["CASES_DIR"] = str(flywheel.cases(demo))
    backend_url = running.enter_context(texts.servers(demo, engine, login["password"]))
    prepared = flywheel.prepare(demo, label_studio, backend_url)
    summary = flywheel.turn(demo, label_studio, prepared)
    _write(demo, {"flywheel": summary})
    for name, fields in summary["before"].items():
        out.print(f"{name}: drafts that say what the human submitted")
        for field, share in fields.items():
            out.print(f"  {field:<16} {100 * share:5.1f} -> {100 * summary['after'][name][field]:5.1f} %")
    out.print(f"promoted: {summary['promoted']}; rolled back to {summary['rolled_back']}, and promoted again")
    out.print(f"refused, trained on shuffled answers: {' '.join(summary['refused_worse'])}", markup=False)
    out.print(f"Everything is in {demo.folder}: summary.json, {flywheel.PLOT}, dataset/, runs/, adapters/.")
    if not once:
        _stay(label_studio, login, "Open the project and compare a task's two predictions.")


def start(demo: Demo, running: ExitStack, login: dict[str, str]) -> LabelStudio:
    """Start Label Studio; it stops when the stack is left."""
    with demo.step("start Label Studio"):
        web = running.enter_context(
            start_label_studio(
                demo.folder / "label-studio",
                token=login["token"],
                username=USER,
                password=login["password"],
                port=8080,
            )
        )
    demo.environment |= {"LABEL_STUDIO_URL": web.url, "LABEL_STUDIO_API_KEY": login["token"]}
    return running.enter_context(LabelStudio(web.url, login["token"]))


def report(demo: Demo, summary: dict[str, Any]) -> None:
    """Write and print the figures."""
    _write(demo, {"projects": summary})
    for name, row in summary.items():
        shown = {key: value for key, value in row.items() if key not in ("failures", "families")}
        out.print(f"{name:<15} " + "  ".join(f"{key} {value}" for key, value in shown.items()))
    out.print(
        f"Everything is in {demo.folder}: summary.json, dataset/, the records of every draft, the logs."
    )


def _write(demo: Demo, summary: dict[str, Any]) -> None:
    summary = summary | {"seconds": demo.seconds}
    path = demo.folder / "summary.json"
    path.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    err.print(f"  {sum(demo.seconds.values()):.0f} s in all", markup=False)


def _stay(label_studio: LabelStudio, login: dict[str, str], words: str) -> NoReturn:
    out.print(f"\nLabel Studio   {label_studio.url}\nuser           {login['user']}")
    out.print(f"password       {login['password']}")
    out.print(words, markup=False)
    out.print("Ctrl-C stops all of it; the next run continues with what you did.")
    while True:
        signal.pause()


if __name__ == "__main__":
    cli()
