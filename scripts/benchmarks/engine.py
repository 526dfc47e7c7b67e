"""The backend against the engine itself: the same prompts through /predict and straight to vLLM.

Both sides send the same bodies: those that the flow sends for these tasks, second tries included, which are
recorded first. Recording also fills the prefix cache, so both sides get the fastest vLLM, where the backend's
own time counts most. Pairs are interleaved and change order.
"""

import asyncio
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from demo.corpus import generate
from draftloop.cli import servers
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.versions import AskOptions
from draftloop.labelling.labelling import Task
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Case, Completion, Prompt
from draftloop.support.environments import ROOT, find_environment

MODEL = "tiny-qwen3"
_CASE = "complaint"
_CLOCK = os.sysconf("SC_CLK_TCK")
_LIMIT_S = 600.0

Tell = Callable[[str], None]
_ids = count(1)  # a task asked again within seconds would wait for its first answer


@dataclass(frozen=True)
class Sizes:
    """How much is sent: enough that a run takes seconds, so little that all of it ends in minutes.

    Four times the width at the widest: the first ones of a run end together, and their cost comes at once.
    `tasks` of one run, by how many of them are asked at once; `in_turn` tasks asked one after the other;
    `alone` calls of one task each, per side; `fresh` tasks for the prefix cache.
    """

    tasks: Mapping[int, int] = field(default_factory=lambda: {1: 24, 8: 64, 32: 256, 64: 256})
    in_turn: int = 32
    alone: int = 60
    fresh: int = 64


@dataclass
class Workload:
    """Tasks of one case and, for each, the bodies that the flow sends for it, in order."""

    case: Case
    xml: str
    tasks: list[Task]
    chains: list[list[bytes]]

    def first(self, number: int) -> "Workload":
        """Return the workload of the first tasks."""
        return Workload(self.case, self.xml, self.tasks[:number], self.chains[:number])


@dataclass
class _Recorder:
    """A model that records its requests."""

    model: VllmModel
    bodies: list[bytes] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.model.name

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        self.bodies.append(json.dumps(self.model.body(prompt), ensure_ascii=False).encode())
        return self.model.complete(prompt, timeout_s=timeout_s)


def measure(
    folder: Path, vllm: str, pairs: int, tell: Tell, sizes: Sizes | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure everything that stands against the engine.

    Args:
        folder: For the backends' ledgers.
        vllm: Root address of a vLLM that serves the embedded model.
        pairs: Interleaved pairs at each width.
        tell: Takes progress, in words.
        sizes: How much is sent.
    Returns:
        Figures by name, and the raw samples.
    Raises:
        ServerError: The backend does not start.
        httpx.HTTPError: One of them failed a request.
    """
    sizes = sizes or Sizes()
    figures: dict[str, float] = {}
    samples: dict[str, Any] = {}
    tell("recording what the flow sends")
    load = record(vllm, max(sizes.tasks.values()))
    samples["requests_per_task"] = sum(map(len, load.chains)) / len(load.chains)
    for width, number in sizes.tasks.items():
        with _backend(folder, vllm, width) as backend:
            part = load.first(number)
            rates = _pairs(part, backend, vllm, width, pairs, tell)
            if width == 32:
                before = cpu_seconds(backend.pid)
                through_predict(backend.url, part)
                figures["client_cpu_ms_per_task"] = (cpu_seconds(backend.pid) - before) * 1000 / number
                samples["one_at_a_time"] = _against_one_at_a_time(load, backend, vllm, sizes.in_turn, tell)
                figures["vs_one_at_a_time"] = statistics.median(
                    pair["ours"] / pair["in_turn"] for pair in samples["one_at_a_time"]
                )
            if width == 1:
                samples["interactive_ms"] = _alone(load, backend, vllm, sizes.alone, tell)
        samples[f"engine_{width}"] = rates
        figures[f"engine_share_{width}"] = statistics.median(pair["ours"] / pair["engine"] for pair in rates)
    waits = samples["interactive_ms"]
    figures["interactive_overhead_ms_p50"] = statistics.median(waits["ours"]) - statistics.median(
        waits["engine"]
    )
    samples["prefix"] = _prefix(vllm, sizes.fresh, tell)
    figures["prefix_cached_share"] = samples["prefix"]["cached"] / samples["prefix"]["prompt"]
    figures["prefix_shared_share"] = samples["prefix"]["shared"] / samples["prefix"]["prompt"]
    return figures, samples


def record(vllm: str, number: int) -> Workload:
    """Run the flow over held-out tasks and write down every body, task by task.

    Args:
        vllm: Root address of vLLM.
        number: How many tasks.
    Returns:
        The workload.
    """
    cases = Cases(ROOT / "label_config")
    case = cases.get(_CASE)
    tasks = _tasks(_CASE, number)
    with VllmModel(f"{vllm}/v1", MODEL) as model, ThreadPoolExecutor(16) as pool:

        def bodies(task: Task) -> list[bytes]:
            recorder = _Recorder(model)
            drafter = Drafter(recorder, AskOptions(profile="compact", temperature=0), concurrency=1)
            drafter.draft(case, [task], deadline_s=_LIMIT_S)
            drafter.close()
            return recorder.bodies

        chains = list(pool.map(bodies, tasks))
    return Workload(case, cases.config(_CASE), tasks, chains)


def through_predict(url: str, load: Workload) -> float:
    """Send all tasks in one /predict, as Label Studio does.

    Returns:
        Requests to the model per second.
    Raises:
        RuntimeError: Not every task got a prediction.
    """
    tasks = [{"id": next(_ids), "data": task.data} for task in load.tasks]
    body = {"tasks": tasks, "label_config": load.xml, "project": "1.0"}
    started = time.perf_counter()
    answer = httpx.post(f"{url}/predict", json=body, timeout=_LIMIT_S, trust_env=False)
    seconds = time.perf_counter() - started
    results = answer.raise_for_status().json()["results"]
    if len(results) != len(tasks) or not all("result" in one for one in results):
        raise RuntimeError(
            f"{sum('result' in one for one in results)} of {len(tasks)} tasks got a prediction"
        )
    return sum(map(len, load.chains)) / seconds


def straight(vllm: str, load: Workload, width: int) -> float:
    """Send the same bodies with a pooled asyncio client, at most `width` tasks at once.

    Returns:
        Requests per second.
    """

    async def run() -> float:
        limits = httpx.Limits(max_connections=width, max_keepalive_connections=width)
        gate = asyncio.Semaphore(width)
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(limits=limits, timeout=_LIMIT_S, trust_env=False) as client:

            async def one(chain: Sequence[bytes]) -> None:
                async with gate:
                    for body in chain:
                        address = f"{vllm}/v1/chat/completions"
                        answer = await client.post(address, content=body, headers=headers)
                        json.loads(answer.raise_for_status().content)

            started = time.perf_counter()
            await asyncio.gather(*map(one, load.chains))
            return time.perf_counter() - started

    return sum(map(len, load.chains)) / asyncio.run(run())


def cpu_seconds(group: int) -> float:
    """Add up the CPU time, user and system, of a process group's living processes.

    Args:
        group: Process group id.
    Returns:
        Seconds.
    """
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended
        if int(after[2]) == group:
            total += (int(after[11]) + int(after[12])) / _CLOCK
    return total


def _backend(folder: Path, vllm: str, width: int) -> servers.ServerProcess:
    settings = {
        "MODEL_URL": f"{vllm}/v1",
        "MODEL_NAME": MODEL,
        "MODEL_PROFILE": "compact",
        "MODEL_TEMPERATURE": "0",
        "MODEL_CONCURRENCY": str(width),
        "BACKEND_DEADLINE_S": str(_LIMIT_S),
        "BACKEND_LOG_LEVEL": "info",
        "CACHE_URL": "",
        "LEDGER_URL": f"sqlite:///{folder}/ledger-{width}.sqlite3",
    }
    return servers.start_backend(settings)


def _tasks(case: str, number: int) -> list[Task]:
    seed = 4096
    return [Task(next(_ids), {"text": one.text}) for one in generate(case, "held_out", number, seed)]


def _pairs(
    load: Workload, backend: servers.ServerProcess, vllm: str, width: int, pairs: int, tell: Tell
) -> list[dict[str, float]]:
    through_predict(backend.url, load)  # connections are made, code is warm
    measured = []
    for pair in range(pairs):
        rates: dict[str, float] = {}
        for side in ("ours", "engine") if pair % 2 else ("engine", "ours"):
            rates[side] = (
                through_predict(backend.url, load) if side == "ours" else straight(vllm, load, width)
            )
        tell(f"{width} at once: {rates['ours']:.1f}/s through /predict, {rates['engine']:.1f}/s straight")
        measured.append(rates)
    return measured


def _against_one_at_a_time(
    load: Workload, backend: servers.ServerProcess, vllm: str, number: int, tell: Tell
) -> list[dict[str, float]]:
    """Compare with asking for one task after the other through the plain OpenAI client."""
    part = load.first(number)
    bodies = [json.loads(body) for chain in part.chains for body in chain]
    python = find_environment("vllm") / "bin" / "python"
    script = Path(__file__).with_name("openai_in_turn.py")
    measured = []
    for _ in range(3):
        done = subprocess.run(
            [str(python), str(script), f"{vllm}/v1"],
            input=json.dumps(bodies),
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        )
        pair = {"in_turn": len(bodies) / float(done.stdout), "ours": through_predict(backend.url, load)}
        tell(f"{pair['ours']:.1f} through /predict, {pair['in_turn']:.1f} one at a time, per second")
        measured.append(pair)
    return measured


def _alone(
    load: Workload, backend: servers.ServerProcess, vllm: str, calls: int, tell: Tell
) -> dict[str, list[float]]:
    """Time single calls, as when one page is opened; only tasks that take one request."""
    alone = [(task, chain[0]) for task, chain in zip(load.tasks, load.chains, strict=True) if len(chain) == 1]
    waits: dict[str, list[float]] = {"ours": [], "engine": []}
    with httpx.Client(timeout=_LIMIT_S, trust_env=False) as client:

        def timed(side: str, task: Task, body: bytes) -> None:
            if side == "ours":
                one = {"id": next(_ids), "data": task.data}
                sent = json.dumps({"tasks": [one], "label_config": load.xml, "project": "1.0"}).encode()
                address = f"{backend.url}/predict"
            else:
                sent, address = body, f"{vllm}/v1/chat/completions"
            started = time.perf_counter()
            client.post(
                address, content=sent, headers={"Content-Type": "application/json"}
            ).raise_for_status()
            waits[side].append((time.perf_counter() - started) * 1000)

        for number in range(calls):
            task, body = alone[number % len(alone)]
            for side in ("ours", "engine") if number % 2 else ("engine", "ours"):
                timed(side, task, body)
    middle = {side: statistics.median(times) for side, times in waits.items()}
    tell(f"one call alone: {middle['ours']:.1f} ms through /predict, {middle['engine']:.1f} ms straight")
    return waits


def _prefix(vllm: str, fresh: int, tell: Tell) -> dict[str, float]:
    """Count prompt tokens, cached ones, and those that all prompts share, on tasks never asked before.

    With the full profile, whose shared part (role, task, schema, examples) is what the cache is for.
    """
    case = Cases(ROOT / "label_config").get("named_entities")
    block = next(int(flag.partition("=")[2]) for flag in servers.VLLM_FLAGS if "--block-size" in flag)
    with VllmModel(f"{vllm}/v1", MODEL) as model:
        recorder = _Recorder(model)
        drafter = Drafter(recorder, AskOptions(profile="full", temperature=0, max_tokens=256), concurrency=8)
        drafter.draft(case, _tasks("named_entities", 1))
        drafts = drafter.draft(case, _tasks("named_entities", fresh + 1)[1:])
        drafter.close()
        shared = _shared_tokens(vllm, recorder.bodies)
    asked = sum(draft.attempts for draft in drafts)
    tokens = {
        "prompt": sum(draft.prompt_tokens for draft in drafts),
        "cached": sum(draft.cached_tokens for draft in drafts),
        "shared": float(shared // block * block * asked),
    }
    tell(
        f"prefix cache: {tokens['cached']} of {tokens['prompt']} prompt tokens, {tokens['shared']:.0f} shared"
    )
    return tokens


def _shared_tokens(vllm: str, bodies: Sequence[bytes]) -> int:
    """Count the tokens with which all prompts begin."""
    prompts = []
    for body in bodies[:8]:
        asked = json.loads(body)
        question = {
            "model": MODEL,
            "messages": asked["messages"],
            "chat_template_kwargs": asked["chat_template_kwargs"],
        }
        answer = httpx.post(f"{vllm}/tokenize", json=question, timeout=60, trust_env=False)
        prompts.append(answer.raise_for_status().json()["tokens"])
    same = 0
    for column in zip(*prompts, strict=False):
        if len(set(column)) > 1:
            break
        same += 1
    return same
