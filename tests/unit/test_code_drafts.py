"""Drafts of code tasks: run, mended, invalid with the reason where they do not work, never thrown away."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from draftloop.drafting.bulk import record
from draftloop.drafting.cache import SqliteCache
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.drafts import Draft, draft_status_html
from draftloop.drafting.versions import AskOptions
from draftloop.errors import DraftloopError, SetupError, TaskError, Unreachable
from draftloop.execution.runner import Execution, Runner
from draftloop.labelling.labelling import Task
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Refinement
from draftloop.runs.run import NO_RUN, run_key
from tests.fake_sandbox import FakeLoop, FakeSandbox, FakeStore, python
from tests.fake_vllm import Body, FakeVllm, fake_vllm

CASES = Cases(Path(__file__).parents[2] / "label_config")
CASE = CASES.get("code_analysis")
FLIGHT = CASES.get("flight_booking")
DATA = {
    **NO_RUN,
    "instruction": "Count",
    "input_schema": "",
    "input_preview": "",
    "inputs": [],
    "draft_status": "",
    "output_files": ["n.txt"],
}
TASK = Task(1, DATA)
WORKS = "# leave n.txt\n# print 42"


def code(*scripts: str) -> Callable[[Body], str]:
    """Answer the first question with the first script, the next one with the next."""

    def answer(body: Body) -> str:
        question = next(
            index
            for index, message in enumerate(body["messages"])
            if message["content"].startswith("## instruction\nCount")
        )
        turn = sum(message["role"] == "assistant" for message in body["messages"][question:])
        return CASE.labelling.encode({"code": scripts[min(turn, len(scripts) - 1)]})

    return answer


class Bench:
    """A drafter before a fake model, a fake sandbox and a store in memory."""

    def __init__(
        self,
        fake: FakeVllm,
        *,
        mode: Literal["auto", "ask"] | None = "auto",
        turns: int = 3,
        cache: SqliteCache | None = None,
    ) -> None:
        self.fake, self.sandbox, self.store = fake, FakeSandbox(), FakeStore()
        self.model = VllmModel(fake.url, fake.name)
        self.loop = FakeLoop()
        runner = Runner(
            self.sandbox, self.loop, self.store, inputs_root=Path("/nonexistent"), turns=turns, total_s=20
        )
        execution = Execution(runner, mode) if mode else None
        self.drafter = Drafter(
            self.model,
            AskOptions(max_tokens=2000, timeout_s=5),
            concurrency=4,
            cache=cache,
            execution=execution,
        )

    def draft(self, task: Task = TASK, limit_s: float = 20) -> Draft:
        return self.drafter.draft(CASE, [task], deadline_s=limit_s)[0]

    def close(self) -> None:
        self.drafter.close()
        self.model.close()


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm(context_tokens=20_000) as server:
        yield server


@pytest.fixture
def bench(fake: FakeVllm) -> Iterator[Bench]:
    made = Bench(fake)
    yield made
    made.close()


def test_code_that_works_is_a_scored_draft_with_its_run(bench: Bench) -> None:
    bench.fake.answer = code(WORKS)
    draft = bench.draft()
    assert (draft.status, draft.value, draft.reasons) == ("ok", {"code": WORKS}, ())
    assert draft.score > 0
    assert draft.run is not None
    assert (draft.run.ok, draft.run.version, draft.run.instruction) == (
        True,
        bench.drafter.version(CASE).name,
        "Count",
    )
    assert bench.store.runs == {run_key([python(WORKS)], ()): draft.run}
    assert len(bench.fake.asked) == 1
    assert draft_status_html(draft) == ""


def test_a_model_gets_the_output_of_its_code_and_its_second_script_is_the_draft(bench: Bench) -> None:
    bench.fake.answer = code("# fail 城市", WORKS)
    draft = bench.draft()
    assert (draft.status, draft.value, draft.attempts) == ("ok", {"code": WORKS}, 2)
    assert draft.run is not None
    assert [attempt.outcome for attempt in draft.run.attempts] == ["failed", "ok"]
    first, second = (body["messages"] for body in bench.fake.asked)
    assert second[: len(first)] == first, "what was asked before is served from the prefix cache"
    assert second[-2]["content"] == CASE.labelling.encode({"code": "# fail 城市"})
    assert "KeyError: 城市" in second[-1]["content"]
    assert bench.fake.asked[1]["response_format"] == bench.fake.asked[0]["response_format"]
    assert {region["from_name"] for region in draft.regions} == {"code"}


def test_code_that_never_works_stays_with_score_0_and_how_it_ended(bench: Bench) -> None:
    bench.fake.answer = code("# fail 1", "# fail 2", "# fail <b>", "# fail 4")
    draft = bench.draft()
    assert (draft.status, draft.value, draft.score) == ("invalid", {"code": "# fail <b>"}, 0.0)
    assert [reason.kind for reason in draft.reasons] == ["run"]
    assert len(bench.fake.asked) == 3
    assert draft.prediction() is not None
    status = draft_status_html(draft)
    assert status.startswith("The code needs a human:\n• ")
    assert "<" not in status, "lists of tasks show it as text"
    assert "exit status 1. KeyError: &lt;b&gt;" in status


def test_a_declared_file_that_is_missing_is_a_reason(bench: Bench) -> None:
    bench.fake.answer = code("# print only words")
    draft = bench.draft()
    assert draft.status == "invalid"
    assert "did not leave 'n.txt'" in str(draft.reasons[0])
    assert len(bench.sandbox.jobs) == 1, "the same code is not run twice"


def test_what_cannot_be_decoded_is_not_run(bench: Bench) -> None:
    bench.fake.answer = lambda _: "no json"
    draft = bench.draft()
    assert (draft.status, draft.run, bench.sandbox.jobs) == ("undecodable", None, [])


def test_a_model_that_fails_while_it_mends_leaves_the_code_that_ran(bench: Bench) -> None:
    bench.fake.answer = code("# fail 1")
    bench.fake.fail = lambda _: 400 if len(bench.fake.asked) > 1 else None
    draft = bench.draft()
    assert (draft.status, draft.value) == ("invalid", {"code": "# fail 1"})
    assert draft.run is not None


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (SetupError("This kernel has no Landlock.", hint="Use a newer one."), "was not run: This kernel"),
        (Unreachable("The sandbox does not answer."), "was not run: The sandbox does not answer."),
    ],
)
def test_code_that_cannot_be_run_is_prefilled_and_the_status_says_why(
    bench: Bench, trouble: DraftloopError, words: str
) -> None:
    bench.fake.answer = code(WORKS)
    bench.sandbox.trouble = trouble
    draft = bench.draft()
    assert (draft.status, draft.value, draft.score, draft.run) == ("invalid", {"code": WORKS}, 0.0, None)
    assert words in draft_status_html(draft)
    assert (bench.sandbox.jobs, bench.loop.begun) == ([], 0)


def test_a_sandbox_that_ended_is_asked_again_and_runs_the_code(bench: Bench) -> None:
    bench.fake.answer = code(WORKS)
    bench.loop.troubles = [Unreachable("gone"), Unreachable("gone")]
    draft = bench.draft()
    assert (draft.status, draft.run is not None, bench.loop.troubles) == ("ok", True, [])


def test_code_that_hangs_is_ended_at_the_deadline(bench: Bench) -> None:
    bench.fake.answer = code("# hang")
    futures = bench.drafter.submit(CASE, [TASK], bench.drafter.version(CASE), limit_s=1)
    draft = futures[0].result(timeout=10)
    assert (draft.status, draft.run and draft.run.last.outcome) == ("invalid", "timeout")


def test_input_files_that_are_gone_are_a_reason(bench: Bench) -> None:
    bench.fake.answer = code(WORKS)
    gone = {"name": "a.csv", "path": "a.csv", "size_bytes": 1, "sha256": "0" * 64}
    draft = bench.draft(Task(1, {**DATA, "inputs": [gone]}))
    assert "Input 'a.csv' cannot be read" in str(draft.reasons[0])
    assert bench.loop.begun == 0


@pytest.mark.parametrize("mode", ["ask", None])
def test_drafts_carry_code_alone_where_it_is_not_run_unasked(
    fake: FakeVllm, mode: Literal["ask"] | None
) -> None:
    bench = Bench(fake, mode=mode)
    fake.answer = code("# fail 1")
    draft = bench.draft()
    assert (draft.status, draft.run, bench.sandbox.jobs) == ("ok", None, [])
    assert ("2 GB of memory" in fake.asked[0]["messages"][0]["content"]) == (mode == "ask")
    run = bench.drafter.coding.rerun_of_human(CASE, TASK, {"code": "# print 1"}, limit_s=5)
    assert (run and run.origin) == ("human" if mode else None)
    bench.close()


def test_what_ran_already_is_not_run_again(bench: Bench) -> None:
    first = bench.drafter.coding.rerun_of_human(CASE, TASK, {"code": "# print 1"}, limit_s=5)
    again = bench.drafter.coding.rerun_of_human(CASE, TASK, {"code": "# print 1\n\n"}, limit_s=5)
    assert first == again
    assert len(bench.sandbox.jobs) == 1
    for limit_s in (0.3, 0.3):  # what was stopped may have met a busy machine
        bench.drafter.coding.rerun_of_human(CASE, TASK, {"code": "# hang"}, limit_s=limit_s)
    assert len(bench.sandbox.jobs) == 3


def test_code_with_a_lone_surrogate_is_refused_and_not_run(bench: Bench) -> None:
    with pytest.raises(TaskError, match="half a character"):
        bench.drafter.coding.rerun_of_human(CASE, TASK, {"code": "print('\ud83d')"}, limit_s=5)
    assert bench.sandbox.jobs == []


def test_a_cached_draft_brings_its_run_or_is_run_again(fake: FakeVllm, tmp_path: Path) -> None:
    bench = Bench(fake, cache=SqliteCache(f"sqlite:///{tmp_path}/cache.sqlite3", max_rows=10))
    fake.answer = code(WORKS)
    first = bench.draft()
    second = bench.draft()
    assert (second.from_cache, second.run, len(bench.sandbox.jobs)) == (True, first.run, 1)
    bench.store.runs.clear()
    third = bench.draft()
    assert (third.from_cache, third.run and third.run.ok, len(bench.sandbox.jobs)) == (True, True, 2)
    assert len(fake.asked) == 1
    bench.close()


def test_a_redraft_in_words_is_run_too(bench: Bench) -> None:
    bench.fake.answer = lambda _: CASE.labelling.encode({"code": WORKS})
    refinement = Refinement("print it", {"code": "# fail 1", "verdict": "needs_fix"})
    (future,) = bench.drafter.submit(
        CASE, [TASK], bench.drafter.version(CASE), limit_s=10, refinement=refinement
    )
    draft = future.result()
    assert draft.run is not None
    assert draft.run.ok
    assert "needs_fix" not in json.dumps(bench.fake.asked[-1]["messages"])


def test_the_version_holds_the_sandbox_for_code_alone(fake: FakeVllm) -> None:
    benches = [Bench(fake), Bench(fake, turns=5), Bench(fake, mode="ask"), Bench(fake, mode=None)]
    assert len({bench.drafter.version(CASE).name for bench in benches}) == 4
    assert len({bench.drafter.version(FLIGHT).name for bench in benches}) == 1
    manifest = benches[0].drafter.version(CASE).manifest["execution"]
    assert (manifest["mode"], manifest["turns"], manifest["limits"]["wall_s"]) == ("auto", 3, 60)
    assert "pandas 3.0.0" in manifest["environment"]
    for bench in benches:
        bench.close()


def test_a_record_tells_of_the_run(bench: Bench) -> None:
    bench.fake.answer = code("# fail 1", WORKS)
    draft = bench.draft()
    assert draft.run is not None
    assert record(7, CASE, TASK, draft)["run"] == {
        "key": draft.run.key,
        "attempts": 2,
        "outcome": "ok",
        "ms": 200,
    }
