"""Whatever annotators do, every annotation is counted once, and no sample changes sides."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftloop.dataset.corpus import CORPUS_GATES, POLICIES, DatasetOptions, settle, split_of
from draftloop.dataset.corpus import Settled as Fates
from draftloop.dataset.gates import SAMPLE_GATES, Rejected, annotations_of, group_of, judge
from draftloop.dataset.nearness import sketch
from draftloop.dataset.sample import Brief, Sample, Split
from draftloop.dataset.spot_check import Check
from draftloop.errors import SetupError
from draftloop.prompting.cases import Cases
from draftloop.support.environments import ROOT
from tests.samples import written_out

CASE = Cases(ROOT / "label_config").get("sentiment")
LONG = "The parcel came three days late, the box was torn open and nobody answered my letters at all"
(CONTROL,) = CASE.labelling.controls
GATES = (*(gate.name for gate in SAMPLE_GATES), *(gate.name for gate in CORPUS_GATES))
TEXTS = ("它很好。", LONG, f"{LONG}!", f"{LONG}.", "")  # two nearly the same, one that shows nothing


def task(number: int, text: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": number,
        "data": {"text": text, "draft_status": ""},
        "predictions": [],
        "annotations": list(annotations),
    }


def annotation(number: int, answer: int | None, **more: Any) -> dict[str, Any]:
    choice = {"from_name": CONTROL.name, "to_name": "text", "type": "choices"}
    result = [] if answer is None else [choice | {"value": {"choices": [CONTROL.options.names[answer]]}}]
    return {"id": number, "result": result, "completed_by": 1 + number % 3, **more}


def judged(tasks: list[dict[str, Any]]) -> list[Sample | Rejected]:
    return [judge(annotation, CASE) for one in tasks for annotation in annotations_of(one, 1)]


@dataclass(frozen=True)
class Held:
    sample: Sample
    gate: str
    reason: str


@dataclass(frozen=True)
class Settled:
    """What became of samples, with the samples themselves, in the order of the files."""

    samples: tuple[Sample, ...]
    held: tuple[Held, ...]
    fates: Fates


def settle_all(
    samples: Sequence[Sample],
    options: DatasetOptions,
    splits: Mapping[str, Split],
    checks: Mapping[int, Sequence[Check]] | None = None,
) -> Settled:
    by_id = {sample.annotation: sample for sample in samples}

    def sketches(briefs: Sequence[Brief]) -> Iterator[bytes]:
        return (sketch(" ".join(by_id[brief.annotation].input.values())) for brief in briefs)

    fates = settle(map(Brief.of, samples), options, splits, sketches, checks)
    ordered = sorted(samples, key=lambda one: (one.task, one.annotation))
    done = [Sample.from_record(fates.finalize(sample.record())) for sample in ordered]
    assert fates.splits.keys() | fates.held.keys() == by_id.keys()
    return Settled(
        tuple(sample for sample in done if sample.annotation not in fates.held),
        tuple(
            Held(sample, *fates.held[sample.annotation]) for sample in done if sample.annotation in fates.held
        ),
        fates,
    )


def settled(
    tasks: list[dict[str, Any]], splits: dict[str, Split] | None = None, **options: Any
) -> tuple[Settled, list[Rejected]]:
    rows = judged(tasks)
    samples = [row for row in rows if isinstance(row, Sample)]
    rejected = [row for row in rows if isinstance(row, Rejected)]
    return settle_all(samples, DatasetOptions(**options), splits or {}), rejected


def held(outcome: Settled) -> dict[int, str]:
    return {one.sample.annotation: one.gate for one in outcome.held}


def splits_of(outcome: Settled) -> dict[str, Split]:
    return {sample.group: sample.split for sample in outcome.samples if sample.split}


@st.composite
def histories(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """States of a project, one after each step: annotations made, edited, deleted, skipped; tasks deleted."""
    tasks: dict[int, dict[str, Any]] = {}
    states = []
    for step in range(1, draw(st.integers(1, 12))):
        deed = draw(
            st.sampled_from(["import", "submit", "submit", "submit", "edit", "skip", "delete", "drop"])
        )
        if deed == "import" or not tasks:
            tasks[step] = task(step, draw(st.sampled_from(TEXTS)))
            deed = "submit"
        number = draw(st.sampled_from(sorted(tasks)))
        made = tasks[number]["annotations"]
        answer = draw(st.sampled_from([0, 1, None]))
        more = {"updated_at": f"2026-01-01T00:00:{step:02}Z", "ground_truth": draw(st.booleans())}
        if deed == "drop":
            del tasks[number]
        elif deed == "submit" or not made:
            tasks[number] = {
                **tasks[number],
                "annotations": [*made, annotation(step, answer, **more)],
            }
        else:
            place = draw(st.integers(0, len(made) - 1))
            changed = {**annotation(made[place]["id"], answer, **more), "was_cancelled": deed == "skip"}
            kept = [] if deed == "delete" else [changed]
            tasks[number] = {**tasks[number], "annotations": [*made[:place], *kept, *made[place + 1 :]]}
        states.append(list(tasks.values()))
    return states


@settings(deadline=None)
@given(histories(), st.sampled_from([policy.name for policy in POLICIES]))
def test_counts_add_up_and_no_sample_moves_from_test_to_train(
    states: list[list[dict[str, Any]]], policy: str
) -> None:
    splits: dict[str, Split] = {}
    for tasks in states:
        outcome, rejected = settled(tasks, splits, policy=policy)
        every = [entry["id"] for one in tasks for entry in one["annotations"]]
        parts = [
            *(sample.annotation for sample in outcome.samples),
            *(one.sample.annotation for one in outcome.held),
            *(row.annotation for row in rejected),
        ]
        assert sorted(parts) == sorted(every)
        assert all(sample.split for sample in outcome.samples)
        assert len({sample.task for sample in outcome.samples}) == len(outcome.samples)
        assert all(one.reason and one.sample.split is None for one in outcome.held)
        for sample in outcome.samples:
            assert splits.get(sample.group, sample.split) == sample.split
            assert sample.gates == GATES
        assert settled(list(reversed(tasks)), splits, policy=policy)[0] == outcome
        again = settle_all(
            [*outcome.samples, *(one.sample for one in outcome.held)], DatasetOptions(policy=policy), splits
        )
        assert again == outcome
        splits = splits_of(outcome)


def test_a_policy_picks_one_annotation_of_a_task() -> None:
    tasks = [
        task(
            1,
            LONG,
            annotation(1, 0, updated_at="2026-01-01T00:00:05Z"),
            annotation(2, 1, updated_at="2026-01-01T00:00:09Z"),
            annotation(3, 0, updated_at="2026-01-01T00:00:07Z"),
        )
    ]
    assert [sample.annotation for sample in settled(tasks, policy="latest")[0].samples] == [2]
    assert [sample.annotation for sample in settled(tasks, policy="ground_truth")[0].samples] == [2]
    assert [sample.annotation for sample in settled(tasks, policy="agreement")[0].samples] == [3]
    tasks[0]["annotations"][0]["ground_truth"] = True
    assert [sample.annotation for sample in settled(tasks, policy="ground_truth")[0].samples] == [1]
    del tasks[0]["annotations"][2]
    outcome, _ = settled(tasks, policy="agreement")
    assert held(outcome) == {1: "one_per_task", 2: "one_per_task"}
    assert "2 annotations with 2 answers" in outcome.held[0].reason


def test_different_answers_to_the_same_question_are_all_held_but_for_ground_truth() -> None:
    tasks = [
        task(1, LONG, annotation(1, 0)),
        task(2, LONG, annotation(2, 1)),
        task(3, LONG, annotation(3, 0)),
    ]
    outcome, _ = settled(tasks)
    assert set(held(outcome).values()) == {"not_contradicted"}
    assert len(outcome.held) == 3
    tasks[1]["annotations"][0]["ground_truth"] = True
    outcome, _ = settled(tasks)
    assert [sample.annotation for sample in outcome.samples] == [2]


def test_the_first_of_equal_and_of_nearly_equal_samples_stays() -> None:
    tasks = [
        task(1, f"{LONG}!", annotation(7, 0)),
        task(2, LONG, annotation(2, 0)),
        task(3, LONG, annotation(3, 0)),
        task(4, f"{LONG}.", annotation(4, 1)),
    ]
    outcome, _ = settled(tasks)
    assert held(outcome) == {3: "not_repeated", 7: "not_nearly_repeated"}
    assert "in common" in outcome.held[0].reason
    assert {sample.annotation for sample in outcome.samples} == {2, 4}  # 4 says something else of it
    assert len({sample.split for sample in outcome.samples}) == 1  # and so goes where 2 goes


def of_split(split: Split) -> str:
    """A text whose group goes to this split by its hash."""
    return next(
        text for text in (f"{LONG} {n}" for n in range(1000)) if split_of(group_of({"text": text})) == split
    )


def test_near_duplicates_share_a_split_also_after_the_first_is_deleted() -> None:
    first, second = of_split("test"), f"{of_split('test')} "
    assert split_of(group_of({"text": second + "x"})) == "train"
    tasks = [task(1, first, annotation(1, 0)), task(2, second + "x", annotation(2, 1))]
    outcome, _ = settled(tasks)
    assert [sample.split for sample in outcome.samples] == ["test", "test"]
    later, _ = settled(tasks[1:], splits_of(outcome))
    assert [sample.split for sample in later.samples] == ["test"]
    assert [sample.split for sample in settled(tasks[1:])[0].samples] == ["train"]  # without a memory


def test_a_new_sample_between_train_and_test_is_held_back_with_that_reason() -> None:
    words = [str(n * 7919 % 9973) for n in range(120)]
    left, middle, right = (" ".join(words[start : start + 100]) for start in (0, 4, 8))
    known: dict[str, Split] = {group_of({"text": left}): "train", group_of({"text": right}): "test"}
    tasks = [task(1, left, annotation(1, 0)), task(2, right, annotation(2, 1))]
    outcome, _ = settled(tasks, known)
    assert [sample.split for sample in outcome.samples] == ["train", "test"]
    (third,) = (row for row in judged([task(3, middle, annotation(3, 0))]) if isinstance(row, Sample))
    different = replace(third, target="{}")  # else it would only repeat what the others say
    later = settle_all([*outcome.samples, different], DatasetOptions(), known)
    assert held(later) == {3: "not_leaking"}
    assert "bridge train" in later.held[0].reason
    assert later.samples == outcome.samples


def test_tasks_of_one_document_are_never_in_both_splits() -> None:
    texts = [f"{n} {LONG[n:]}{n * 7919}" for n in range(40)]
    rows = [
        judge(
            annotations_of({**one, "data": {**one["data"], "page_of": "d"}}, 1)[0], CASE, group_by="page_of"
        )
        for one in (task(n, text, annotation(n, n % 2)) for n, text in enumerate(texts, start=1))
    ]
    outcome = settle_all([row for row in rows if isinstance(row, Sample)], DatasetOptions(), {})
    assert len({sample.split for sample in outcome.samples}) == 1


def test_over_long_samples_are_held_whole() -> None:
    short, long = written_out(code=False)[:2]
    outcome = settle_all(
        [replace(short, tokens=10), replace(long, tokens=11)], DatasetOptions(max_tokens=10), {}
    )
    assert held(outcome) == {long.annotation: "fits_tokens"}
    assert outcome.held[0].reason == "It has 11 tokens, the limit is 10."
    assert outcome.held[0].sample.target == long.target


@pytest.mark.parametrize(
    "wrong", [{"formats": ("jsonl",)}, {"policy": "majority"}, {"region": "china"}, {"spot_check": 5.0}]
)
def test_an_option_that_there_is_not_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(SetupError):
        DatasetOptions(**wrong)
