"""Export what humans submitted as a dataset: samples, training rows, rejects with reasons, manifest.

Reads only what changed since the last time; a folder remembers its projects and every option below.
Submitted code of code tasks is run again, from its inputs alone, in the sandbox (ARTIFACTS_URL, INPUT_ROOT
and EXECUTION_* are those of the backend); what was run once is remembered.
Running it again with nothing new writes nothing. It may be interrupted at any moment: the next run
completes it.

    draftloop sync --project 7
    draftloop sync --project 7 --project 8 --out dataset/
    draftloop sync --out dataset/ --format messages --format trl-dpo --parquet
    draftloop sync --out dataset/ --tokenizer demo/models/tiny-qwen3 --max-tokens 1024
    draftloop sync --out dataset/ --spot-check 0.05 --max-error 0.1
    draftloop sync --out dataset/ --no-rerun
    draftloop sync --out dataset/ --explain 1234
    draftloop sync --out dataset/ --engine ray

Formats: FORMATS.
"""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import ApiKeyOption, Meter, UrlOption, connect, err, out, plain_errors
from draftloop.dataset.formats import FORMATS
from draftloop.dataset.ray import RayData
from draftloop.dataset.records import OrderedMap, explain
from draftloop.dataset.reruns import Reruns
from draftloop.dataset.sync import sync
from draftloop.errors import SetupError
from draftloop.prompting.cases import Cases
from draftloop.settings import Settings

cli = app()
WORDS = (__doc__ or "").replace("FORMATS", ", ".join(form.name for form in FORMATS))


def spread(engine: str, address: str) -> AbstractContextManager[OrderedMap]:
    """Open what maps work over tasks and samples: this process, or Ray's.

    Raises:
        SetupError: There is no such engine, or it has no address.
    """
    if engine not in ("local", "ray"):
        raise SetupError(f"There is no engine '{engine}'.", hint="There are: local, ray.")
    if address and engine != "ray":
        raise SetupError("Ray's address is of no use to this engine.", hint="Add --engine ray.")
    return nullcontext(map) if engine == "local" else _rays(address)


@contextmanager
def _rays(address: str) -> Iterator[OrderedMap]:
    err.print(f"connecting to Ray at {address}" if address else "starting Ray on this machine")
    with RayData(address) as rays:
        err.print(f"Ray: {rays.cpus} processes")
        yield rays


def _collect_seldom() -> None:
    # Pages of tasks are hundreds of thousands of objects without cycles; collecting them takes a tenth of a
    # first sync. So collect less often, and freeze the objects that exist already.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _reruns(settings: Settings, *, elsewhere: bool) -> Reruns:
    # It imports the parts of the server, which most syncs do not need.
    from draftloop.app.execution import make_reruns  # noqa: PLC0415

    return make_reruns(settings, elsewhere=elsewhere)


@cli.command(cls=Verb, help=WORDS)
def main(  # noqa: PLR0913, PLR0917  # one for each option
    project: Annotated[
        list[int] | None,
        typer.Option(help="Project to export; may be repeated. The folder's own come along."),
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="The dataset's folder.")] = Path("dataset"),
    case: Annotated[
        str, typer.Option(help="Case of the projects, where their connection does not say.")
    ] = "",
    form: Annotated[
        list[str] | None, typer.Option("--format", help="Format of rows; may be repeated.")
    ] = None,
    files: Annotated[str, typer.Option(help="Kind of row files: jsonl, zstd, parquet.")] = "",
    parquet: Annotated[bool, typer.Option("--parquet", help="The same as --files parquet.")] = False,
    policy: Annotated[
        str,
        typer.Option(help="Of several annotations of a task: ground_truth (else latest), latest, agreement."),
    ] = "",
    group_by: Annotated[
        str | None, typer.Option(help="Key of task data that names the source document; '' for none.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder of the target model's tokenizer: counts tokens; '' for none."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longer samples are held back, never cut.")
    ] = None,
    mask: Annotated[
        bool | None, typer.Option("--mask/--no-mask", help="Put stand-ins for personal data.")
    ] = None,
    region: Annotated[str, typer.Option(help="Country of telephone numbers: CN, US, ...")] = "",
    spot_check: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share that is held until a second human passes it; 0 is none."),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Hold a kind of samples with more errors in its checks; 1 is never."),
    ] = None,
    reviews: Annotated[
        int | None,
        typer.Option(help="Project with the spot checks, which draftloop spot-check makes; 0 forgets it."),
    ] = None,
    rerun: Annotated[
        bool | None,
        typer.Option(
            "--rerun/--no-rerun", help="Run submitted code again, or export it as it is, marked so."
        ),
    ] = None,
    task: Annotated[
        int | None,
        typer.Option("--explain", help="Only tell, from the folder, what became of this task."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local: one process. ray: all cores, or a cluster's; the same bytes.")
    ] = "local",
    ray_address: Annotated[
        str, typer.Option(help="Ray cluster, host:port; without, Ray is started on this machine and stopped.")
    ] = "",
    url: UrlOption = "",
    api_key: ApiKeyOption = "",
) -> None:
    """Run the verb."""
    with plain_errors("Run the same command again: it goes on where it stopped."):
        if task is not None:
            for line in explain(out_folder, task):
                out.print(escape(line))
            return
        changes = {
            "formats": tuple(form) if form else None,
            "files": "parquet" if parquet else files or None,
            "policy": policy or None,
            "group_by": group_by,
            "tokenizer": tokenizer,
            "max_tokens": max_tokens,
            "mask": mask,
            "region": region or None,
            "spot_check": spot_check,
            "max_error": max_error,
            "reviews": reviews,
            "rerun": rerun,
        }
        _collect_seldom()
        spreading = spread(engine, ray_address)
        settings = Settings()
        label_studio = connect(settings, url, api_key)
        cases = Cases(settings.store.cases_dir)
        with spreading as each, Meter() as meter:
            report = sync(
                label_studio,
                cases,
                out_folder,
                project or [],
                wanted_case=case or None,
                changes={name: part for name, part in changes.items() if part is not None},
                make_reruns=partial(_reruns, settings, elsewhere=engine == "ray"),
                progress=meter,
                each=each,
            )
        counts = report.counts
        if not (report.new or report.changed or report.gone):
            out.print(f"nothing new ({report.looked_at} tasks looked at)")
            if len(report.written) > 1:
                out.print("files are written anew: options or verdicts changed")
        else:
            out.print(f"{report.new} new, {report.changed} changed, {report.gone} gone")
        out.print(
            f"{out_folder}: {counts['annotations']} annotations = {counts['samples']} samples "
            f"({counts['train']} train, {counts['test']} test) + {counts['held']} held "
            f"+ {counts['rejected']} rejected"
        )
        out.print(
            f"drafts: {counts['accepted']} accepted, {counts['corrected']} corrected; "
            f"without a draft: {counts['written']}"
        )
        if report.programs:
            out.print(f"code: {report.programs} programs looked at; {report.ran} runs made just now")
        for gate, count in counts["stopped_by"].items():
            out.print(f"stopped by {escape(gate)}: {count}, see held.jsonl and rejected.jsonl")
        for gate, count in counts["noted_by"].items():
            out.print(f"noted by {escape(gate)}: {count} samples")
        out.print(f"report: {out_folder}/report.html")
        if counts["samples"]:
            out.print(f"Next: train on {out_folder}/FORMAT.jsonl, see README.md there; *.test.* is held out")
        elif counts["annotations"]:
            out.print(
                f"Next: draftloop requeue --out {out_folder} counts what was stopped, and sends it back"
            )
        else:
            out.print("Next: submit tasks in Label Studio, then run this again")
