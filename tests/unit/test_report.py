"""The report: figures that add up, everything escaped, the same page for the same dataset."""

import math
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.dataset.agreement import Agreement
from draftloop.dataset.corpus import DatasetOptions, Held
from draftloop.dataset.gates import Rejected
from draftloop.dataset.report import report_page
from draftloop.dataset.sample import Sample
from draftloop.dataset.spot_check import ByLot, Stratum
from draftloop.dataset.tally import Tally, likeness, median, writing
from tests.samples import samples, written_out

NASTY = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """What a browser would make of it: tags that are open, texts, and no script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: Counter[str] = Counter()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1
        if tag not in ("br", "meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page(tally: Tally, *strata: Stratum) -> Page:
    made = report_page(tally, strata, DatasetOptions(spot_check=0.05))
    assert made == report_page(tally, strata, DatasetOptions(spot_check=0.05))
    page_ = Page(made)
    assert not page_.open
    assert not page_.tags["script"]
    assert "http" not in made
    return page_


@given(
    st.lists(st.tuples(samples(), st.booleans())), st.lists(st.sampled_from(["readable", NASTY]), max_size=3)
)
def test_every_dataset_has_a_page_and_its_counts_add_up(
    samples: list[tuple[Sample, bool]], gates: list[str]
) -> None:
    tally = Tally()
    for number, (sample, is_held) in enumerate(samples):
        placed = replace(sample, task=number, split=None if is_held else "train")
        tally.sample(placed, Held("not_repeated", NASTY) if is_held else None)
    for number, gate in enumerate(gates, start=len(samples)):
        tally.rejected(Rejected(1, number, number, "c", gate, NASTY))
    counts = tally.counts.record()
    assert counts["annotations"] == counts["tasks"] == len(samples) + len(gates)
    assert counts["annotations"] == counts["samples"] + counts["held"] + counts["rejected"]
    assert counts["samples"] == counts["accepted"] + counts["corrected"] + counts["written"]
    assert sum(counts["stopped_by"].values()) == counts["held"] + counts["rejected"]
    assert tally.lengths.total() == tally.writings.total() == counts["samples"]
    texts = "".join(page(tally).texts)
    assert f"{len(samples) + len(gates)} annotations" in texts
    assert (NASTY in texts) == bool(gates or counts["held"])


def test_the_report_begins_with_what_needs_attention() -> None:
    tally = Tally()
    for number in range(30):
        sample = written_out(code=False)[number % 3]
        tally.sample(replace(sample, task=number, metadata={"draft_version": "m-1", "human": 4}))
    tally.rejected(Rejected(1, 99, 99, "complaint", "fits_schema", "no name", {"human": 4}))
    stratum = Stratum("complaint", 4, "no score", 30, 6, 5, 2)
    words = "".join(page(tally, stratum).texts)
    assert "Spot checks found 2 of 5 wrong" in words
    assert "Drawn samples that wait for a second human: 1." in words
    assert "Nothing is held out" in words
    assert "m-1" in words
    assert "fits_schema" in words
    assert words.index("Look at first") < words.index("Gates")
    assert "There is no sample" in "".join(page(Tally()).texts)


def test_figures_of_drafts_are_those_of_the_samples() -> None:
    tally = Tally()
    for sample in written_out(code=False):
        tally.sample(replace(sample, metadata={"draft_version": "m-1", "lead_time_s": 2.0, "draft_score": 1}))
    drafts = tally.versions["m-1"]
    assert (drafts.accepted, drafts.corrected, drafts.judged) == (4, 4, 8)
    assert (tally.undrafted_s, median(drafts.lead_s)) == (Counter({2: 4}), 2)
    name = tally.fields["complaint", "name"]
    assert (name.drafts, name.corrected) == (8, 4)
    assert 0 < name.likeness < 4
    assert tally.deciles == Counter({(9, True): 4, (9, False): 4})


def test_annotators_of_one_task_are_compared_once_each() -> None:
    one, other = written_out(code=False)[:2]
    tally = Tally()
    by = [replace(one, metadata={"human": 1}), replace(other, metadata={"human": 2})]
    tally.overlap(by[:1])
    tally.overlap([by[0], by[0]])
    assert not tally.agreement
    tally.overlap(by)
    tally.overlap([by[0], replace(by[0], metadata={"human": 3})])
    assert tally.agreement["complaint"].tasks == 2
    assert tally.agreement["complaint"].observed == 0.5
    assert "Krippendorff" in "".join(page(tally).texts)


def test_alpha_is_krippendorffs() -> None:
    """The nominal example of Krippendorff (2011), section C: four observers, twelve units, some missing."""
    agreement = Agreement()
    for unit in (
        *("111", "2223", "3333", "3333", "2222", "1234", "4444"),
        *("1121", "2222", "555", "11", "3"),
    ):
        agreement.add(list(unit), "a")
    assert round(agreement.alpha, 3) == 0.743
    assert agreement.tasks == 11
    assert math.isnan(Agreement().alpha)
    same = Agreement()
    same.add(["a", "a"], "a")
    assert math.isnan(same.alpha)
    assert same.observed == 1


def test_small_figures() -> None:
    assert median(Counter()) is None
    assert median(Counter({1: 1, 5: 1})) == 1
    assert likeness("abcd", "abcd") == 1
    assert likeness(None, "x") == 0
    assert likeness("", None) == 1
    assert likeness("the blue car", "the red car") == pytest.approx(18 / 23)  # "the ", "e" or "r", " car"
    assert likeness("a" * 999, "b" * 999) == 0
    assert likeness("a" * 999 + "x", "a" * 999 + "y") == pytest.approx(0.999)
    assert [writing(text) for text in ("我叫张三 ok", "hello 三", "123")] == [
        "Chinese characters",
        "Latin",
        "no letters",
    ]


def test_what_spot_checks_say_of_all_samples_is_one_sentence() -> None:
    def words(by_lot: ByLot) -> str:
        made = report_page(
            Tally(), [Stratum("c", 4, "no score", 30, 6, 5, 2)], DatasetOptions(spot_check=0.05), by_lot
        )
        return "".join(Page(made).texts)

    sentence = (
        "With 95 % confidence, 1.4% to 16.2% of all 1000 samples were wrong as they were submitted: of "
        "50 drawn by lot alone 50 were checked and 3 found wrong."
    )
    assert words(ByLot(1000, 50, 50, 3)).count(sentence) == 2  # first of all, and with the spot checks
    waits = words(ByLot(1000, 50, 48, 3))
    assert "and the 2 not checked yet count as right in the lower figure and as wrong in the upper." in waits
    assert "nothing is known of all of them together" in words(ByLot(9, 0, 0, 0))
    assert "were wrong as they were submitted" not in words(ByLot(9, 0, 0, 0))
