"""Similar tasks: shared by workers, bounded, shown or reused; their failure costs no draft."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from demo.measure_near_duplicates import measure
from draftloop.app import make_neighbours
from draftloop.drafting.cache import SqliteCache
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.drafts import Draft
from draftloop.drafting.neighbours import SqliteNeighbours
from draftloop.drafting.versions import AskOptions
from draftloop.errors import SetupError
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.ledger.sqlite import Ledger
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Refinement, generic_case
from draftloop.serving.answers import Answers
from draftloop.serving.metrics import Metrics
from draftloop.settings import StoreSettings
from draftloop.support.environments import ROOT
from tests.fake_vllm import FakeVllm, fake_vllm

CASES = Cases(ROOT / "label_config")
CASE = CASES.get("complaint")
OLD = "单号100,我叫何平,住中山北路88号,邮箱hp@a.cn。电梯坏了三天!"
VALUE = {"name": "何平", "address": "中山北路88号", "email": "hp@a.cn", "question": "电梯坏了三天!"}
SAME = OLD.replace("100", "207")
OTHER = OLD.replace("何平", "何苹")


def opened(folder: Path, *, reuse: bool = True, max_rows: int = 1000) -> SqliteNeighbours:
    return SqliteNeighbours(f"sqlite:///{folder}/cache.sqlite3", max_rows=max_rows, reuse=reuse)


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm(
        context_tokens=4096,
        answer=lambda body: CASE.labelling.encode(
            {**VALUE, "name": "何苹" if "何苹" in body["messages"][-1]["content"] else "何平"}
        ),
    ) as server:
        yield server


def draft(fake: FakeVllm, store: SqliteNeighbours, *texts: str) -> list[Draft]:
    with VllmModel(fake.url, fake.name) as model:
        drafter = Drafter(model, AskOptions(profile="full"), concurrency=4, neighbours=store)
        drafts = [drafter.draft(CASE, [Task(1, {"text": text})])[0] for text in texts]
        drafter.close()
    return drafts


def test_workers_share_answers_within_a_version(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    one.put("v", OLD, "{}", 0.9)
    one.put("v", "something else that is not like it at all", "{}", 0.9)
    neighbour = two.find("v", SAME)
    assert neighbour is not None
    assert (neighbour.question, neighbour.answer, neighbour.score) == (OLD, "{}", 0.9)
    assert 0.7 <= neighbour.similarity < 1
    assert two.find("other", SAME) is None
    assert two.find("v", "nothing like this was ever asked before, not by anybody") is None


def test_the_store_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    store = opened(tmp_path, max_rows=100)
    texts = [f"{number:04d} {number * 7919:08d} {number * 104729:09d}" for number in range(520)]
    for text in texts:
        store.put("v", text, "{}", 1.0)
    held = [number for number, text in enumerate(texts) if store.find("v", text)]
    assert 100 <= len(held) <= 100 + 256
    assert held == list(range(520 - len(held), 520))
    with sqlite3.connect(tmp_path / "cache.sqlite3") as other:
        assert other.execute("SELECT COUNT(DISTINCT id) FROM neighbour_bands").fetchone() == (len(held),)
    other.close()


def test_many_threads_use_it_at_once(tmp_path: Path) -> None:
    store = opened(tmp_path)

    def both(number: int) -> bool:
        text = f"{number * 7919:08d} {number * 104729:09d}"
        store.put("v", text, str(number), 1.0)
        neighbour = store.find("v", text)
        return neighbour is not None and neighbour.answer == str(number)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(both, range(100)))


def test_an_answer_that_holds_is_reused_without_the_model(fake: FakeVllm, tmp_path: Path) -> None:
    first, same = draft(fake, opened(tmp_path), OLD, SAME)
    assert len(fake.asked) == 1
    assert (first.near_duplicate, same.near_duplicate) == ("", "reused")
    assert (same.status, same.value, same.attempts) == ("ok", VALUE, 0)
    assert [region["value"] for region in same.regions] == [region["value"] for region in first.regions]
    assert 0 < same.score < first.score


def test_an_answer_that_does_not_hold_is_an_example_behind_what_tasks_share(
    fake: FakeVllm, tmp_path: Path
) -> None:
    first, other = draft(fake, opened(tmp_path), OLD, OTHER)
    assert (other.status, other.value) == ("ok", {**VALUE, "name": "何苹"})
    assert other.near_duplicate == "example"
    plain, shown = (body["messages"] for body in fake.asked)
    assert shown[: len(plain) - 1] == plain[:-1]
    assert [message["content"] for message in shown[len(plain) - 1 :]] == [OLD, first.raw, OTHER]


def test_an_answer_to_other_options_is_not_reused(tmp_path: Path) -> None:
    config = """<View><Text name="text" value="$text"/>
    <Choices name="pick" toName="text" value="$options"/></View>"""
    case = generic_case(compile_labelling(config))
    tasks = [
        Task(number, {"text": OLD, "options": [{"value": option} for option in options.split()]})
        for number, options in enumerate(("broken lift", "broken lift light"))
    ]
    with (
        fake_vllm() as fake,
        VllmModel(fake.url, fake.name) as model,
        closing(Drafter(model, AskOptions(profile="full"), neighbours=opened(tmp_path))) as drafter,
    ):
        drafts = [drafter.draft(case, [task])[0] for task in tasks]
    assert [draft.near_duplicate for draft in drafts] == ["", ""]
    assert [draft.value for draft in drafts] == [{"pick": "broken"}, {"pick": "broken"}]


def test_as_example_nothing_is_reused(fake: FakeVllm, tmp_path: Path) -> None:
    _, same = draft(fake, opened(tmp_path, reuse=False), OLD, SAME)
    assert (len(fake.asked), same.near_duplicate) == (2, "example")


def test_what_was_reused_is_no_neighbour_of_others(fake: FakeVllm, tmp_path: Path) -> None:
    store = opened(tmp_path)
    draft(fake, store, OLD, SAME)
    neighbour = store.find(draft(fake, store, OLD)[0].version, SAME)
    assert neighbour is not None
    assert neighbour.question == OLD


def test_an_example_that_does_not_fit_is_left_out(fake: FakeVllm, tmp_path: Path) -> None:
    fake.fail = lambda body: 400 if OLD in str(body["messages"][:-1]) else None
    _, other = draft(fake, opened(tmp_path), OLD, OTHER)
    assert (other.status, len(fake.asked)) == ("ok", 3)


def test_a_failure_is_no_neighbour(fake: FakeVllm, tmp_path: Path) -> None:
    right, fake.answer = fake.answer, lambda _: "no json"
    store = opened(tmp_path)
    draft(fake, store, OLD)
    fake.answer = right
    assert draft(fake, store, SAME)[0].near_duplicate == ""


def test_a_humans_words_are_never_answered_from_a_neighbour(fake: FakeVllm, tmp_path: Path) -> None:
    store = opened(tmp_path)
    draft(fake, store, OLD)
    with VllmModel(fake.url, fake.name) as model:
        drafter = Drafter(model, AskOptions(profile="full"), neighbours=store)
        task = Task(1, {"text": SAME})
        (future,) = drafter.submit(
            CASE, [task], drafter.version(CASE), limit_s=20, refinement=Refinement("shorter")
        )
        assert future.result().near_duplicate == ""
        drafter.close()
    assert len(fake.asked) == 2


def test_the_mode_is_part_of_the_version(fake: FakeVllm, tmp_path: Path) -> None:
    with VllmModel(fake.url, fake.name) as model:
        stores = [None, opened(tmp_path, reuse=False), opened(tmp_path, reuse=True)]
        assert len({Drafter(model, neighbours=store).version(CASE).name for store in stores}) == 3


def test_exact_cache_and_near_duplicates_share_a_file_and_are_counted(fake: FakeVllm, tmp_path: Path) -> None:
    metrics, url = Metrics(), f"sqlite:///{tmp_path}/cache.sqlite3"
    with VllmModel(fake.url, fake.name) as model:
        cache = SqliteCache(url, max_rows=10)
        drafter = Drafter(
            model, AskOptions(profile="full"), concurrency=1, cache=cache, neighbours=opened(tmp_path)
        )
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
        answers = Answers(drafter, ledger, CASES.find, None, deadline_s=20, metrics=metrics)
        for number, text in enumerate((OLD, SAME, OTHER, OLD)):
            answers.answer(7, CASE, [Task(number, {"text": text})])
        drafter.close()
    assert len(fake.asked) == 2
    page = metrics.page().decode()
    assert 'draftloop_near_duplicates_total{case="complaint",used="reused"} 1.0' in page
    assert 'draftloop_near_duplicates_total{case="complaint",used="example"} 1.0' in page


def test_a_store_that_is_gone_costs_no_draft(fake: FakeVllm, tmp_path: Path) -> None:
    store = opened(tmp_path)
    with sqlite3.connect(tmp_path / "cache.sqlite3") as other:
        other.execute("DROP TABLE neighbours")
    other.close()
    assert [drafted.status for drafted in draft(fake, store, OLD, SAME)] == ["ok", "ok"]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:6379/0", "", "sqlite:////nowhere/at/all/cache"])
def test_a_cache_that_cannot_hold_it_is_refused_at_start(url: str) -> None:
    settings: dict[str, Any] = {"cache_url": url}
    with pytest.raises(SetupError, match=r"NEAR_DUPLICATES needs|cannot be opened"):
        make_neighbours(StoreSettings(**settings, near_duplicates="reuse"))
    assert make_neighbours(StoreSettings(**settings)) is None


def test_the_measure_tells_what_rules_alone_would_let_through(tmp_path: Path) -> None:
    counts = dict(measure("complaint", 40, 1, tmp_path))
    assert counts["a longer question"]["by rules, false"] > 0
    assert counts["blanks and marks before it"]["reused"] > 0
    assert sum(row["reused, false"] for row in counts.values()) == 0
