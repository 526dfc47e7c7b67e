"""The flow: one draft per task, an answer that fails goes back once, nothing is hidden or thrown away."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from draftloop.drafting.drafter import Drafter
from draftloop.drafting.drafts import draft_status_html
from draftloop.drafting.versions import AskOptions
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Completion, Overrides, Prompt, Refinement, generic_case
from tests.fake_vllm import Body, FakeVllm, fake_vllm
from tests.families import FAMILIES

CASES = Cases(Path(__file__).parents[2] / "label_config")
FLIGHT = CASES.get("flight_booking")
TEXT = "从昆明到哈尔滨"
RIGHT = {"intent": "book", "departure_city": "昆明", "arrival_city": "哈尔滨"}
SAME = {**RIGHT, "arrival_city": "昆明"}


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm(context_tokens=4096) as server:
        yield server


@pytest.fixture
def drafter(fake: FakeVllm) -> Iterator[Drafter]:
    with VllmModel(fake.url, fake.name) as model:
        made = Drafter(model, AskOptions(profile="compact"), concurrency=8)
        yield made
        made.close()


def answers(*values: Any) -> Any:
    """Answer the first question of a task with the first value, the retry with the second."""

    def answer(body: Body) -> str:
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        value = values[min(turn, len(values) - 1)]
        return value if isinstance(value, str) else FLIGHT.labelling.encode(value)

    return answer


def flight(drafter: Drafter) -> Any:
    return drafter.draft(FLIGHT, [Task(1, {"text": TEXT})])[0]


def test_a_right_answer_is_prefilled_and_scored(fake: FakeVllm, drafter: Drafter) -> None:
    fake.answer = answers(RIGHT)
    draft = flight(drafter)
    assert (draft.status, draft.value, draft.attempts, draft.reasons) == ("ok", RIGHT, 1, ())
    assert 0 < draft.score < 1
    assert draft.prediction()["model_version"] == drafter.version(FLIGHT).name
    assert {region["from_name"] for region in draft.prediction()["result"]} == set(RIGHT)
    assert draft_status_html(draft) == ""


def test_a_wrong_answer_goes_back_once_with_the_validators_words(fake: FakeVllm, drafter: Drafter) -> None:
    fake.answer = answers(SAME, RIGHT)
    draft = flight(drafter)
    assert (draft.status, draft.value, draft.attempts) == ("ok", RIGHT, 2)
    assert "must differ" in fake.asked[1]["messages"][-1]["content"]


class Watched(dict[str, Any]):
    """Task data that count how often their text is read."""

    reads = 0

    def __getitem__(self, key: str) -> Any:
        self.reads += key == "text"
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.reads += key == "text"
        return super().get(key, default)


def test_a_task_is_read_once_by_all_steps_of_its_draft(fake: FakeVllm, drafter: Drafter) -> None:
    once, data = Watched(text=TEXT), Watched(text=TEXT)
    FLIGHT.labelling.inputs(Task(1, once))
    fake.answer = answers(SAME, RIGHT)
    (draft,) = drafter.draft(FLIGHT, [Task(1, data)])
    assert (draft.status, draft.attempts) == ("ok", 2)
    assert data.reads == once.reads > 0


def test_what_still_fails_its_rules_stays_prefilled_with_score_0_and_its_reasons(
    fake: FakeVllm, drafter: Drafter
) -> None:
    fake.answer = answers(SAME)
    draft = flight(drafter)
    assert (draft.status, draft.value, draft.score, draft.attempts) == ("invalid", SAME, 0.0, 2)
    assert len(draft.regions) == 3
    assert "must differ" in draft_status_html(draft)


def test_what_cannot_be_decoded_is_empty_with_its_reasons(fake: FakeVllm, drafter: Drafter) -> None:
    fake.answer = answers("<b>no json")
    draft = flight(drafter)
    assert (draft.status, draft.value, draft.score) == ("undecodable", None, 0.0)
    assert draft.prediction()["result"] == []
    assert draft.raw == "<b>no json"


def test_a_decodable_first_answer_is_kept_when_the_second_is_worse(fake: FakeVllm, drafter: Drafter) -> None:
    fake.answer = answers(SAME, "no json")
    draft = flight(drafter)
    assert (draft.status, draft.value) == ("invalid", SAME)
    assert json.loads(draft.raw)["arrival_city"] == "昆明"


def test_a_first_answer_stands_where_the_retry_is_too_long_to_be_asked(
    fake: FakeVllm, drafter: Drafter
) -> None:
    fake.answer = answers(SAME)
    fake.fail = lambda body: 400 if len(body["messages"]) > 2 else None
    draft = flight(drafter)
    assert (draft.status, draft.value, draft.attempts) == ("invalid", SAME, 1)
    assert "must differ" in draft_status_html(draft)


def test_options_that_a_task_brings_bind_its_answer(fake: FakeVllm, drafter: Drafter) -> None:
    config, data = FAMILIES["options"]
    case = generic_case(compile_labelling(config))
    tasks = [Task(1, data), Task(2, {**data, "flat": [{"value": "other"}]}), Task(3, {"text": "a"})]
    drafts = drafter.draft(case, tasks)
    asked = [body["structured_outputs"]["grammar"] for body in fake.asked]  # its spans are quotes
    enums = {tuple(name for name in ("x 1", "x 2", "other") if f'"{name}"' in one) for one in asked}
    assert enums == {("other",), ("x 1", "x 2")}
    assert [draft.value and draft.value.get("flat") for draft in drafts] == ["x 1", "other", None]
    assert "key 'options' is missing" in str(drafts[2].reasons[0])


def test_a_second_answer_that_is_no_better_leaves_the_first(fake: FakeVllm, drafter: Drafter) -> None:
    worse = {"intent": "book", "departure_city": "JSON", "arrival_city": "again"}
    fake.answer = answers(SAME, worse)
    draft = flight(drafter)
    assert (draft.status, draft.value, draft.attempts) == ("invalid", SAME, 2)
    assert [reason.message for reason in draft.reasons] == ["departure_city and arrival_city must differ"]


def test_reasons_are_escaped_in_the_page(fake: FakeVllm, drafter: Drafter) -> None:
    fake.answer = answers({**RIGHT, "arrival_city": "<img src=x>"})
    assert "&lt;img" in draft_status_html(flight(drafter))


def test_a_task_without_its_text_costs_only_itself(fake: FakeVllm, drafter: Drafter) -> None:
    fake.answer = answers(RIGHT)
    drafts = drafter.draft(FLIGHT, [Task(1, {"text": TEXT}), Task(2, {}), Task(3, {"text": TEXT})])
    assert [(draft.task_id, draft.status) for draft in drafts] == [(1, "ok"), (2, "undecodable"), (3, "ok")]
    assert "key 'text' is missing" in draft_status_html(drafts[1])


def test_a_refused_prompt_costs_only_its_task(fake: FakeVllm, drafter: Drafter) -> None:
    fake.answer = answers(RIGHT)
    fake.fail = lambda body: 400 if "拒" in body["messages"][-1]["content"] else None
    drafts = drafter.draft(FLIGHT, [Task(1, {"text": TEXT}), Task(2, {"text": "拒"})])
    assert [draft.status for draft in drafts] == ["ok", "undecodable"]


class Broken:
    """A model client with a mistake in it: it breaks on one text in a way that nobody foresaw."""

    name = "broken"

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        if prompt.messages[-1].content == "bad":
            raise KeyError("nobody foresaw this")
        return Completion(FLIGHT.labelling.encode(RIGHT), "stop")


def test_a_mistake_of_ours_in_one_task_costs_only_that_task() -> None:
    drafter = Drafter(Broken(), AskOptions(profile="compact"), concurrency=2)
    drafts = drafter.draft(
        FLIGHT, [Task(1, {"text": TEXT}), Task(2, {"text": "bad"}), Task(3, {"text": TEXT})]
    )
    drafter.close()
    assert [draft.status for draft in drafts] == ["ok", "failed", "ok"]


def test_a_server_that_fails_a_while_is_tried_again(fake: FakeVllm, drafter: Drafter) -> None:
    fake.answer = answers(RIGHT)
    fake.fail = lambda _: 503 if len(fake.asked) < 3 else None
    assert flight(drafter).status == "ok"
    assert len(fake.asked) == 3


def test_a_server_that_fails_twice_on_one_prompt_costs_that_task_its_draft_and_no_time(
    fake: FakeVllm, drafter: Drafter
) -> None:
    fake.answer = answers(RIGHT)
    fake.fail = lambda body: 500 if "拒" in body["messages"][-1]["content"] else None
    tasks = [Task(1, {"text": TEXT}), Task(2, {"text": "拒"})]
    drafts = drafter.draft(FLIGHT, tasks, deadline_s=60)
    bulk = sorted(drafter.stream(FLIGHT, tasks), key=lambda draft: draft.task_id)
    for one in (drafts, bulk):
        assert [draft.status for draft in one] == ["ok", "undecodable"]
        assert "Twice: The model server failed (500): as the test asked" in str(one[1].reasons[0])
    assert len(fake.asked) == 2 * (1 + 2)


def test_a_server_whose_engine_is_dead_is_tried_again(fake: FakeVllm, drafter: Drafter) -> None:
    fake.answer = answers(RIGHT)
    fake.is_well = False
    fake.fail = lambda _: 500 if len(fake.asked) < 5 else None
    assert flight(drafter).status == "ok"


def test_half_a_character_in_an_option_or_in_the_page_is_one_tasks_reason(
    fake: FakeVllm, drafter: Drafter
) -> None:
    config = """<View><Text name="text" value="$text"/>
    <Choices name="pick" toName="text" value="$options" choice="multiple"/></View>"""
    case = generic_case(compile_labelling(config))
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    data = [
        {"text": "t", "options": options}
        for options in (
            [{"value": "a"}],
            [{"value": "\ud83d"}],
            [{"value": "a", "hint": "\ud83d"}],
            [{"value": "a", "x": deep}],
        )
    ]
    data.append({"text": deep, "options": [{"value": "a"}]})
    drafts = drafter.draft(case, [Task(number, entry) for number, entry in enumerate(data, start=1)])
    assert [draft.status for draft in drafts] == ["ok", *["undecodable"] * 4]
    reasons = [str(draft.reasons[0]) for draft in drafts[1:]]
    assert ["half a character" in reason for reason in reasons] == [True, True, False, False]
    assert all("nested deeper than 100" in reason for reason in reasons[2:])
    (future,) = drafter.submit(
        FLIGHT,
        [Task(1, {"text": TEXT})],
        drafter.version(FLIGHT),
        limit_s=30,
        refinement=Refinement("shorter", {**RIGHT, "date": "\ud83d"}),
    )
    assert "half a character" in str(future.result().reasons[0])


def test_what_is_not_ready_at_the_deadline_is_asked_for_again(fake: FakeVllm, drafter: Drafter) -> None:
    fake.delay_s = 2
    drafts = drafter.draft(FLIGHT, [Task(number, {"text": TEXT}) for number in range(20)], deadline_s=0.3)
    assert len(drafts) == 20
    assert {draft.status for draft in drafts} == {"failed"}
    assert {draft.prediction() for draft in drafts} == {None}


def test_tasks_run_side_by_side_but_never_more_than_stated(fake: FakeVllm, drafter: Drafter) -> None:
    fake.answer, fake.delay_s = answers(RIGHT), 0.05
    drafts = list(drafter.stream(FLIGHT, (Task(number, {"text": TEXT}) for number in range(40))))
    assert sorted(draft.task_id for draft in drafts) == list(range(40))
    assert 4 < fake.most_at_once <= 8  # on a busy machine one of the eight may be late


def test_the_version_says_all_that_decides_a_draft(fake: FakeVllm) -> None:
    model = VllmModel(fake.url, fake.name)
    edited = CASES.find(CASES.config("flight_booking").replace("Intent", "Wish"), "flight_booking")
    wanted = [Overrides("Do it."), Overrides(temperature=0.7), Overrides(model="big")]
    versions = [
        Drafter(model, AskOptions(profile="compact", temperature=0)).version(FLIGHT).name,
        Drafter(model, AskOptions(profile="full", temperature=0)).version(FLIGHT).name,
        Drafter(model, AskOptions(profile="compact", temperature=0.3)).version(FLIGHT).name,
        Drafter(VllmModel(fake.url, "other"), AskOptions(profile="compact", temperature=0))
        .version(FLIGHT)
        .name,
        Drafter(model, AskOptions(profile="compact", temperature=0)).version(edited).name,
        Drafter(model, AskOptions(profile="compact", temperature=0)).version(CASES.get("sentiment")).name,
        *(
            Drafter(model, AskOptions(profile="compact", temperature=0))
            .version(FLIGHT.overridden(overrides))
            .name
            for overrides in wanted
        ),
    ]
    assert len(set(versions)) == 9
    assert versions[8].startswith("big-")
    assert (
        versions[0]
        == Drafter(VllmModel("http://elsewhere/v1", fake.name), AskOptions(profile="compact", temperature=0))
        .version(FLIGHT)
        .name
    )
    assert versions[0].startswith("fake-")
    assert len(versions[0]) == len("fake-") + 10


def test_quotes_are_bound_to_the_text_unless_switched_off(fake: FakeVllm) -> None:
    with VllmModel(fake.url, fake.name) as model:
        bound, free = (
            Drafter(model, AskOptions(profile="compact")),
            Drafter(model, AskOptions(profile="compact", bind_quotes=False)),
        )
        assert flight(bound).status != "failed"
        assert flight(free).status != "failed"
        assert bound.version(FLIGHT).name != free.version(FLIGHT).name
        for drafter in (bound, free):
            drafter.close()
    first, last = fake.asked[0], fake.asked[-1]
    assert f'"{TEXT[0]}"' in first["structured_outputs"]["grammar"]
    assert "response_format" not in first
    assert "structured_outputs" not in last
    assert last["response_format"]["json_schema"]["schema"] == FLIGHT.labelling.decoding_schema
