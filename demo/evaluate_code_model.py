"""Measure a served model on held-out code tasks: do its programs run, and do they leave the right files?

Asks a running vLLM as the backend does with MODEL_PROFILE=compact, runs each answer in the sandbox, and
sends failures back to the model, for three programs at most. Prints one JSON object per family and one for
all:

    count     number of tasks without a fault; the next three figures are of these
    ran       share whose first program ended well and left its declared files
    right     share whose first program left the right files, by values computed without it
    later     number that are right only after an earlier program failed
    faults    number of tasks with a fault deep in their file, which no preview shows
    mended    number of those that are right after the model read the traceback

    demo/evaluate_code_model --url http://127.0.0.1:8000/v1 --model tiny-code --count 100
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from demo.corpus.code_checks import mistakes
from demo.corpus.code_failures import answered
from demo.corpus.code_tasks import FAMILIES, FAULT_SHARE, KINDS, SYSTEM, CodeTask, generate, user_text
from demo.corpus.words import Split
from draftloop.cli.commands import Verb, app
from draftloop.cli.terminal import out, plain_errors
from draftloop.errors import InvalidValue
from draftloop.execution.runner import describe_attempt
from draftloop.execution.sandbox import SandboxProcess, installed_python
from draftloop.prompting.cases import Cases
from draftloop.runs.job import Attempt, SandboxJob, Script
from draftloop.runs.run import missing_outputs
from draftloop.support.environments import ROOT

cli = app()
_TURNS = 3
_IN_FLIGHT = 8

Messages = list[dict[str, str]]
# Takes the task and the conversation, returns the answer's text; InvalidValue if the server refuses them.
Ask = Callable[[CodeTask, Messages], str]
# Runs a program for a task; returns the attempt and the mistakes in its files.
Run = Callable[[CodeTask, str], tuple[Attempt, list[str]]]


@dataclass(frozen=True)
class Tried:
    """The result of one task."""

    task: CodeTask
    ran: bool  # the first program
    right: bool  # the last program
    turns: int
    said: str  # what is wrong


@cli.command(cls=Verb, help=__doc__)
def main(
    url: Annotated[str, typer.Option(help="vLLM's address, ending in /v1.")] = "http://127.0.0.1:8000/v1",
    model: Annotated[str, typer.Option(help="The model's name there.")] = "tiny-code",
    count: Annotated[int, typer.Option(min=1, help="Tasks of each family.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the tasks.")] = 0,
    *,
    fault_share: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share of tasks with a fault, of those that can have one."),
    ] = FAULT_SHARE,
    train_split: Annotated[bool, typer.Option("--train", help="Use words that it was trained with.")] = False,
    wrong: Annotated[Path | None, typer.Option(help="JSONL file for what was wrong.")] = None,
) -> None:
    """Run the verb."""
    split: Split = "train" if train_split else "held_out"
    schema = Cases(ROOT / "label_config").get("code_analysis").labelling.decoding_schema
    with plain_errors("Run the same command again."), httpx.Client(base_url=url, timeout=300) as client:

        def ask(_: CodeTask, messages: Messages) -> str:
            body = {
                "model": model,
                "messages": messages,
                "temperature": 0,
                "max_tokens": 400,
                "chat_template_kwargs": {"enable_thinking": False},
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "code", "schema": schema},
                },
            }
            reply = client.post("chat/completions", json=body)
            if reply.status_code == 400:  # most often the traceback does not fit into the model's context
                raise InvalidValue(f"vLLM refuses it: {reply.text[:200]}")
            reply.raise_for_status()
            return str(reply.json()["choices"][0]["message"]["content"])

        every: list[Tried] = []
        for family in FAMILIES:
            kinds = [kind for kind in KINDS if kind.family == family]
            tried = evaluate(list(generate(split, count, seed, kinds, fault_share=fault_share)), ask)
            out.print(json.dumps({"family": family} | figures(tried)), markup=False)
            every += tried
        out.print(json.dumps({"family": "all"} | figures(every)), markup=False)
    if wrong:
        lines = [
            json.dumps(
                {"kind": one.task.kind.name, "fault": one.task.fault, "turns": one.turns}
                | {"prompt": user_text(one.task), "expected": one.task.program, "said": one.said},
                ensure_ascii=False,
            )
            for one in every
            if not one.right
        ]
        wrong.write_text("\n".join(lines) + "\n", encoding="utf-8")


def evaluate(tasks: Sequence[CodeTask], ask: Ask) -> list[Tried]:
    """Ask for programs, run them in a sandbox, and ask again after failures.

    Args:
        tasks: The tasks to ask for.
        ask: Takes the task and the conversation, returns the answer's text.
    Returns:
        The result of each task, in order.
    Raises:
        SetupError: There is no sandbox.
        ServiceError: The sandbox failed.
    """
    with tempfile.TemporaryDirectory(prefix="code-model-", dir="/var/tmp") as folder:  # open to the sandbox
        home = Path(folder)
        home.chmod(0o755)
        inputs, outputs = home / "inputs", home / "outputs"
        paths = {id(task): inputs / str(number) for number, task in enumerate(tasks)}
        for task in tasks:
            paths[id(task)].mkdir(parents=True)
            for name, content in task.files.items():
                (paths[id(task)] / name).write_bytes(content)
        outputs.mkdir()
        with (
            SandboxProcess(installed_python("sandbox"), home / "sandbox", inputs=[inputs]) as sandbox,
            ThreadPoolExecutor(_IN_FLIGHT) as pool,
        ):

            def run(task: CodeTask, code: str) -> tuple[Attempt, list[str]]:
                files = {name: str(paths[id(task)] / name) for name in task.files}
                with tempfile.TemporaryDirectory(dir=outputs) as left:
                    attempt = sandbox.run(SandboxJob((Script(code),), files), left)
                    return attempt, mistakes(task, Path(left), attempt.stdout)

            return list(pool.map(lambda task: _try(task, ask, run), tasks))


def _try(task: CodeTask, ask: Ask, run: Run) -> Tried:
    messages: Messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": user_text(task)},
    ]
    codes: list[str] = []
    ran, said = False, ""
    while len(codes) < _TURNS:
        try:
            answer = ask(task, messages)
            code = _code(answer)
        except InvalidValue as error:
            return Tried(task, ran, right=False, turns=len(codes) + 1, said=f"no answer: {error}")
        if code in codes:
            break
        codes.append(code)
        attempt, wrong = run(task, code)
        missing = missing_outputs(attempt, task.outputs)
        if attempt.outcome == "ok" and not missing:
            said = "\n".join([code, *wrong])
            return Tried(task, ran or len(codes) == 1, right=not wrong, turns=len(codes), said=said)
        output = describe_attempt(attempt, missing)
        said = f"{code}\n{output}"
        messages = [*messages, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": answered(output)})
    return Tried(task, ran, right=False, turns=len(codes), said=said)


def _code(answer: str) -> str:
    try:
        return str(json.loads(answer)["code"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidValue(f"The answer holds no code: {answer[-200:]}") from error


def figures(tried: Sequence[Tried]) -> dict[str, Any]:
    """Count what came of tasks.

    Args:
        tried: What came of them.
    Returns:
        The numbers `count`, `later`, `faults` and `mended`, and the shares `ran` and `right`.
    """
    faults = [one for one in tried if one.task.fault]
    plain = [one for one in tried if not one.task.fault]
    total = max(1, len(plain))
    return {
        "count": len(plain),
        "ran": round(sum(one.ran for one in plain) / total, 4),
        "right": round(sum(one.right and one.turns == 1 for one in plain) / total, 4),
        "later": sum(one.right and one.turns > 1 for one in plain),
        "faults": len(faults),
        "mended": sum(one.right and one.turns > 1 for one in faults),
    }


if __name__ == "__main__":
    cli()
