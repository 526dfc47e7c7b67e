"""Train an embedded demo model, or measure a served one on held-out texts.

    demo/train_model train --out /tmp/tiny
    demo/train_model train --out /tmp/tiny --lexicon /tmp/lexicon.json
    demo/train_model train --out /tmp/tiny-2 --start /tmp/tiny/model-final
    demo/train_model train --size small --out /tmp/tiny-small
    demo/train_model train --model code --out /tmp/tiny-code
    demo/train_model train --out /tmp/tiny --resume /tmp/tiny/checkpoint-040.0.pt --cpu-minutes 50
    demo/train_model evaluate --url http://127.0.0.1:8000/v1 --model tiny-qwen3 --count 300

`train` writes a checkpoint and a model folder every 25 CPU minutes, with figures of a small dev draw; the
last folder is `model-final`. `evaluate` asks a running vLLM (started with the guidance backend and
disable_any_whitespace) as the backend does, with the decoding schema and quotes bound to the text, and prints
one JSON object per case. demo/evaluate_code_model measures the model of code tasks: it runs the programs.
"""

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from demo.corpus import CASES, INSTRUCTIONS, Generated, LexiconError, generate
from demo.training.evaluation import DECODING_SCHEMAS, QUOTED, canonical, score
from draftloop.labelling.grammar import quoting_grammar

_IN_FLIGHT = 16


def _ask(client: httpx.Client, model: str, case: str, text: str, *, bind: bool) -> str:
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": INSTRUCTIONS[case]},
            {"role": "user", "content": text},
        ],
        "temperature": 0,
        "max_tokens": 1024,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    grammar = quoting_grammar(DECODING_SCHEMAS[case], QUOTED[case], [text]) if bind else None
    if grammar:
        body["structured_outputs"] = {"grammar": grammar}
    else:
        schema = {"name": case, "schema": DECODING_SCHEMAS[case]}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    reply = client.post("chat/completions", json=body)
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])


def evaluate(
    url: str, model: str, case: str, texts: Sequence[Generated], wrong: Path | None, *, bind: bool = True
) -> dict[str, Any]:
    """Ask a served model for every text and compare with the labels.

    Args:
        url: Base address, ending in /v1.
        model: Its name there.
        case: Whose instruction and schema to use.
        texts: Labelled texts.
        wrong: Folder for the answers that differ from their label, one JSON line each.
        bind: Whether quotes can be written only as pieces of the text.
    Returns:
        The figures of `demo.training.evaluation.score`, with the case's name.
    Raises:
        httpx.HTTPError: The server cannot be reached or refuses a request.
    """
    with httpx.Client(base_url=url, timeout=300) as client, ThreadPoolExecutor(_IN_FLIGHT) as pool:
        answers = list(pool.map(lambda one: _ask(client, model, case, one.text, bind=bind), texts))
    if wrong:
        wrong.mkdir(parents=True, exist_ok=True)
        differing = [
            json.dumps({"text": one.text, "expected": one.value, "answer": answer}, ensure_ascii=False)
            for one, answer in zip(texts, answers, strict=True)
            if answer != canonical(one.value)
        ]
        (wrong / f"{case}.jsonl").write_text("\n".join(differing) + "\n", encoding="utf-8")
    return {"case": case} | {name: round(value, 4) for name, value in score(case, texts, answers).items()}


def _train(arguments: argparse.Namespace) -> None:
    # Idle OpenMP threads that spin would be counted as CPU time; set before torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from demo.training.model import CODE, SMALL, Recipe, StartError  # noqa: PLC0415 - torch is not needed to evaluate
    from demo.training.trainer import Sources, train  # noqa: PLC0415

    measure, folder, recipe = ("`evaluate`", "tiny-qwen3", Recipe())
    if arguments.size == "small":
        folder, recipe = ("tiny-qwen3-small", SMALL)
    if arguments.model == "code":
        measure, folder, recipe = ("demo/evaluate_code_model", "tiny-code", CODE)
    recipe = replace(
        recipe,
        cpu_minutes=arguments.cpu_minutes or recipe.cpu_minutes,
        processes=arguments.processes,
        seed=arguments.seed,
        optimizer=arguments.optimizer,
    )
    try:
        train(recipe, arguments.out, Sources(arguments.resume, arguments.lexicon, arguments.start))
    except (LexiconError, StartError) as error:
        raise SystemExit(f"demo/train_model: {error}") from error
    print(f"Next: serve {arguments.out / 'model-final'} with vLLM, {measure}, copy to demo/models/{folder}.")


def main() -> None:
    """Read the command line and train or evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    train = verbs.add_parser("train", help="train within a budget of CPU time")
    train.add_argument(
        "--model", choices=("cases", "code"), default="cases", help="text cases (default), or code tasks"
    )
    train.add_argument(
        "--size",
        choices=("usual", "small"),
        default="usual",
        help="of the model of text cases: 7 MB (default), or 3 MB, to draft first in a cascade",
    )
    train.add_argument("--out", type=Path, required=True, help="folder for checkpoints and models")
    train.add_argument(
        "--cpu-minutes", type=float, default=0.0, help="CPU time of all processes (default 110; small: 25)"
    )
    train.add_argument("--processes", type=int, default=2, help="one per core (default 2)")
    train.add_argument("--seed", type=int, default=0, help="seed of weights and texts (default 0)")
    train.add_argument("--resume", type=Path, help="checkpoint to go on from; a smaller budget falls sooner")
    train.add_argument(
        "--lexicon",
        type=Path,
        metavar="FILE",
        help="names and words for the texts of cases, from demo/make_lexicon (default: word lists alone)",
    )
    train.add_argument(
        "--start",
        type=Path,
        metavar="MODEL_FOLDER",
        help="begin from these weights, which the same tokenizer was used for, instead of from nothing",
    )
    train.add_argument(
        "--optimizer",
        choices=("muon", "adamw"),
        default="muon",
        help="of the layers' matrices; all else is AdamW's (default muon)",
    )
    train.set_defaults(run=_train)
    measure = verbs.add_parser("evaluate", help="measure a served model on generated texts")
    measure.add_argument("--url", default="http://127.0.0.1:8000/v1", help="vLLM's address, ending in /v1")
    measure.add_argument("--model", default="tiny-qwen3", help="the model's name there")
    measure.add_argument("--case", choices=CASES, help="one case (default: all)")
    measure.add_argument("--split", choices=("held_out", "validation", "train"), default="held_out")
    measure.add_argument("--count", type=int, default=300, help="texts per case (default 300)")
    measure.add_argument("--seed", type=int, default=0, help="seed of the texts (default 0)")
    measure.add_argument("--wrong", type=Path, help="folder for the answers that differ from their label")
    measure.add_argument("--free", action="store_true", help="bind the answer by the schema alone")
    measure.set_defaults(run=_evaluate)
    arguments = parser.parse_args()
    if vars(arguments).get("lexicon") and arguments.model == "code":
        parser.error("--lexicon is of the model of text cases")
    if vars(arguments).get("size") == "small" and arguments.model == "code":
        parser.error("--size small is of the model of text cases")
    arguments.run(arguments)


def _evaluate(arguments: argparse.Namespace) -> None:
    for case in (arguments.case,) if arguments.case else CASES:
        texts = list(generate(case, arguments.split, arguments.count, arguments.seed))
        figures = evaluate(
            arguments.url, arguments.model, case, texts, arguments.wrong, bind=not arguments.free
        )
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
