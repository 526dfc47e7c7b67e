import random
import weakref
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from draftloop.review.acquisition import TaskCandidate, by_chance, rank

SCORES = st.one_of(st.none(), st.integers(0, 100).map(lambda hundredths: hundredths / 100))
CANDIDATES = st.lists(st.tuples(SCORES, st.text(max_size=30)), max_size=25).map(
    lambda rows: [TaskCandidate(task, score, text) for task, (score, text) in enumerate(rows, start=1)]
)


def score_or_zero(score: float | None) -> float:
    return 1.0 if score is None else score


@given(CANDIDATES, st.integers(0, 30), st.integers(0, 3))
def test_the_order_holds_each_wanted_task_once_whatever_order_they_come_in(
    candidates: list[TaskCandidate], count: int, seed: int
) -> None:
    shuffled = random.Random(seed).sample(candidates, len(candidates))
    for order in (rank, by_chance):
        ranked = order(candidates, count, seed=seed)
        assert len({one.task for one in ranked}) == len(ranked) == min(count, len(candidates))
        assert {(one.task, one.score) for one in ranked} <= {(one.task, one.score) for one in candidates}
        assert ranked == order(shuffled, count, seed=seed)


@given(st.lists(SCORES, max_size=40), st.integers(1, 50))
def test_where_all_texts_are_the_same_the_least_certain_come_first(
    scores: list[float | None], count: int
) -> None:
    ranked = rank([TaskCandidate(task, score, "the same") for task, score in enumerate(scores)], count)
    assert [score_or_zero(one.score) for one in ranked] == sorted(map(score_or_zero, scores))[:count]


@given(st.lists(st.text("abcdefghij", min_size=30, max_size=40), min_size=2, max_size=6, unique=True))
def test_copies_of_a_text_come_after_one_of_each(texts: list[str]) -> None:
    candidates = [TaskCandidate(number, 0.5, text) for number, text in enumerate(texts * 3)]
    ranked = rank(candidates, len(candidates))
    assert len({texts[one.task % len(texts)] for one in ranked[: len(texts)]}) == len(texts)
    assert all(one.likeness == 1.0 for one in ranked[len(texts) :])


def test_broken_drafts_come_first_and_undrafted_tasks_by_parameter() -> None:
    drafts = [
        TaskCandidate(1, 0.9, "parcel lost"),
        TaskCandidate(2, None, "gas leak"),
        TaskCandidate(3, 0.0, "旧电梯"),
    ]
    assert [one.task for one in rank(drafts, 3)] == [3, 1, 2]
    assert [one.task for one in rank(drafts, 3, undrafted=0.5)] == [3, 2, 1]


def test_copies_of_an_uncertain_task_are_ranked_last() -> None:
    text = "the lift has been out of order since Monday and nobody comes"
    drafts = [
        TaskCandidate(1, 0.01, text),
        TaskCandidate(2, 0.02, f"{text}!"),
        TaskCandidate(3, 0.3, "where is my refund?"),
    ]
    assert [one.task for one in rank(drafts, 2)] == [1, 3]


def test_another_seed_orders_equals_otherwise() -> None:
    same = [TaskCandidate(task, 0.5, "the same") for task in range(50)]
    assert rank(same, 50, seed=1) != rank(same, 50, seed=2)
    assert by_chance(same, 50, seed=1) != by_chance(same, 50, seed=2)


class Text(str):
    """A text of which a weak reference can be kept."""

    __slots__ = ("__weakref__",)


def test_texts_of_many_tasks_are_not_kept() -> None:
    kept: weakref.WeakSet[Text] = weakref.WeakSet()
    most = 0

    def many() -> Iterator[TaskCandidate]:
        nonlocal most
        for task in range(20_000):
            text = Text(f"text {task}")
            kept.add(text)
            most = max(most, len(kept))
            yield TaskCandidate(task, (task * 7919 % 10_007) / 10_007, text)

    assert len(rank(many(), 20)) == 20
    assert most <= 20 * 10 + 5
