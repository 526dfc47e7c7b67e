"""The report of a dataset: one page of HTML with everything in it, for a screen and for paper.

Knows which figures `templates/report.html` shows, and which of them need attention first. Does not know how
they are counted (`tally`). The page holds no script, loads nothing and has no date: the same dataset gives
the same page. Every text is escaped; the only text of a task in it is what a gate's reason quotes.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from draftloop.dataset.agreement import Agreement
from draftloop.dataset.charts import bar_chart, day_chart
from draftloop.dataset.code_gates import CODE_GATES, NOT_RUN_AGAIN
from draftloop.dataset.corpus import CORPUS_GATES, DatasetOptions
from draftloop.dataset.gates import PERSONAL_DATA, SAMPLE_GATES
from draftloop.dataset.sample import Gate
from draftloop.dataset.spot_check import ByLot, Stratum
from draftloop.dataset.tally import Drafts, Tally, median
from draftloop.support.intervals import GroupedShare
from draftloop.support.templates import render

_FEW = 20  # of something: below, its share says little
_LOW_ACCEPTANCE = 0.5  # of drafts: below, annotators write more than they check
_LOW_ALPHA = 0.667  # Krippendorff's lower limit for tentative conclusions
_MANY_STOPPED = 0.1
_SHOWN_CHARS = 240  # of a reason; the whole stands in the records
_DAYS = 60  # shown of a version, the last ones

_Cell = str | int | list[str]
_Rows = list[list[_Cell]]


def report_page(
    tally: Tally, strata: Sequence[Stratum], options: DatasetOptions, by_lot: ByLot | None = None
) -> str:
    """Return the report as one HTML page.

    Args:
        tally: The figures.
        strata: What spot checks drew, and what they showed.
        options: What the team decided.
        by_lot: What became of the samples that were drawn by lot alone; None where nothing is drawn.
    """
    counts = tally.counts.record()
    return render(
        "dataset/templates/report.html",
        counts=counts,
        findings=list(_findings(tally, strata, options, by_lot)),
        gates=_gates(tally),
        noted=[[gate, count] for gate, count in counts["noted_by"].items()],
        versions=_versions(tally),
        undrafted=_seconds(tally.undrafted_s),
        fields=_fields(tally),
        deciles=_deciles(tally),
        unit=tally.unit,
        max_tokens=options.max_tokens if tally.unit == "tokens" else None,
        lengths=bar_chart([(str(end), count, count) for end, count in sorted(tally.lengths.items())])
        if tally.lengths
        else "",
        writings=sorted(tally.writings.items(), key=lambda item: (-item[1], item[0])),
        splits=[
            [case, tally.splits[case, "train"], tally.splits[case, "test"]]
            for case in sorted({case for case, _ in tally.splits})
        ],
        people=_people(tally),
        agreement=_agreement(tally),
        strata=_strata(strata),
        spot_check=f"{options.spot_check:.0%}",
        by_lot=_of_all(by_lot) if by_lot is not None else "",
    )


# ---------------------------------------------------------------------------------- what to look at first


def _findings(
    tally: Tally, strata: Sequence[Stratum], options: DatasetOptions, by_lot: ByLot | None
) -> Iterator[str]:
    yield from _of_counts(tally.counts.record(), options)
    if by_lot is not None and by_lot.failed:
        yield _of_all(by_lot)
    for stratum in strata:
        low, high = stratum.interval
        if stratum.failed:
            yield (
                f"Spot checks found {stratum.failed} of {stratum.checked} wrong: {stratum.name} "
                f"({low:.0%} to {high:.0%})."
            )
    waiting = sum(stratum.drawn - stratum.checked for stratum in strata)
    if waiting:
        yield f"Drawn samples that wait for a second human: {waiting}."
    for version, drafts in sorted(tally.versions.items()):
        if drafts.judged >= _FEW and drafts.accepted < _LOW_ACCEPTANCE * drafts.judged:
            yield f"Of the drafts of {version} only {_share(drafts.share)} were accepted as they were."
    for (case, name), field in sorted(tally.fields.items()):
        if field.drafts >= _FEW and field.corrected > (1 - _LOW_ACCEPTANCE) * field.drafts:
            yield f"{case}: {name} was corrected in {_share(field.share)} of its drafts."
        if field.agreement.alpha < _LOW_ALPHA:
            tasks = f"{field.agreement.tasks} task{'s' * (field.agreement.tasks != 1)}"
            yield f"{case}: annotators disagree on {name} (alpha {_alpha(field.agreement)}, {tasks})."


def _of_counts(counts: Mapping[str, Any], options: DatasetOptions) -> Iterator[str]:
    whole = counts["annotations"]
    if not counts["samples"]:
        yield "There is no sample: nothing can be trained on this."
    elif not counts["test"]:
        yield "Nothing is held out: what a model learns from this cannot be measured."
    elif counts["test"] < _FEW:
        yield f"Only {counts['test']} samples are held out: figures measured on them are rough."
    for gate, count in sorted(counts["stopped_by"].items(), key=lambda item: (-item[1], item[0])):
        if count > _MANY_STOPPED * whole:
            yield f"{gate} stops {count} of {whole} annotations ({_pct(count, whole)})."
    unrun = counts["noted_by"].get(NOT_RUN_AGAIN.name, 0)
    if unrun:
        yield f"{unrun} samples hold code that was not run again (--no-rerun)."
    personal = counts["noted_by"].get(PERSONAL_DATA.name, 0)
    if personal and not options.mask:
        yield f"{personal} samples hold personal data; --mask puts stand-ins for it."


# ---------------------------------------------------------------------------------- rows of tables


def _gates(tally: Tally) -> _Rows:
    counts = tally.counts.record()
    left = counts["annotations"]
    rows: _Rows = []
    of_code = [gate for gate in CODE_GATES if gate.name in counts["stopped_by"]]
    gates: tuple[Gate[Any, Any], ...] = (*SAMPLE_GATES, *of_code, *CORPUS_GATES)
    known = [gate.name for gate in gates]
    for gate in (*(name for name in counts["stopped_by"] if name not in known), *known):
        count = counts["stopped_by"].get(gate, 0)
        left -= count
        examples = [
            f"task {task}, annotation {annotation}: {_cut(reason)}"
            for task, annotation, reason in tally.examples.get(gate, ())
        ]
        rows.append([gate, count, left, examples])
    return rows


def _versions(tally: Tally) -> _Rows:
    return [
        [
            version,
            drafts.judged,
            drafts.accepted,
            _share(drafts.share),
            _seconds(drafts.lead_s),
            _days(drafts),
        ]
        for version, drafts in sorted(tally.versions.items(), key=lambda item: (_since(item[1]), item[0]))
    ]


def _fields(tally: Tally) -> _Rows:
    return [
        [
            case,
            name,
            field.drafts,
            field.corrected,
            _share(field.share),
            _likeness(field.likeness, field.corrected),
        ]
        for (case, name), field in sorted(tally.fields.items())
        if field.drafts
    ]


def _deciles(tally: Tally) -> str:
    """Draw how many drafts of each score were accepted; "" where none has a score."""
    if not tally.deciles:
        return ""
    bars = []
    for tenth in range(10):
        right, wrong = tally.deciles[tenth, True], tally.deciles[tenth, False]
        bars.append((f"{tenth / 10:.1f}", right, right + wrong))
    return bar_chart(bars)


def _people(tally: Tally) -> _Rows:
    return [
        [
            "unknown" if human is None else str(human),
            person.samples,
            person.held,
            person.rejected,
            person.accepted,
            person.corrected,
            _seconds(person.lead_s),
        ]
        for human, person in sorted(tally.people.items(), key=lambda item: (item[0] is None, item[0] or 0))
    ]


def _agreement(tally: Tally) -> _Rows:
    entries = [(case, "the whole answer", one) for case, one in sorted(tally.agreement.items())]
    entries += [
        (case, name, field.agreement)
        for (case, name), field in sorted(tally.fields.items())
        if field.agreement.tasks
    ]
    return [
        [case, name, one.tasks, f"{one.observed:.0%}", _alpha(one)]
        for case, name, one in sorted(entries, key=lambda entry: entry[0])
    ]


def _strata(strata: Sequence[Stratum]) -> _Rows:
    rows: _Rows = []
    for one in strata:
        low, high = one.interval
        shown = f"{low:.0%} to {high:.0%}" if one.checked else "-"
        rows.append([one.name, one.samples, one.drawn, one.checked, one.failed, shown])
    return rows


def _of_all(by_lot: ByLot) -> str:
    """Return what spot checks say of all samples, in one sentence."""
    if not by_lot.drawn:
        return "No sample was drawn by lot alone yet, so nothing is known of all of them together."
    low, high = by_lot.interval
    waiting = by_lot.drawn - by_lot.checked
    missing = (
        f", and the {waiting} not checked yet count as right in the lower figure and as wrong in the upper"
        if waiting
        else ""
    )
    return (
        f"With 95 % confidence, {low:.1%} to {high:.1%} of all {by_lot.samples} samples were wrong as they "
        f"were submitted: of {by_lot.drawn} drawn by lot alone {by_lot.checked} were checked and "
        f"{by_lot.failed} found wrong{missing}."
    )


# ---------------------------------------------------------------------------------- how it is written


def _days(drafts: Drafts) -> str:
    """Draw a bar for each day: accepted drafts dark, judged ones light."""
    days = sorted({day for day, _ in drafts.days})[-_DAYS:]
    counts = [(drafts.days[day, True], drafts.days[day, False]) for day in days]
    return day_chart([(day, right, right + wrong) for day, (right, wrong) in zip(days, counts, strict=True)])


def _since(drafts: Drafts) -> str:
    return min(day for day, _ in drafts.days)


def _cut(words: str) -> str:
    return words if len(words) <= _SHOWN_CHARS else f"{words[:_SHOWN_CHARS]}..."


def _pct(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _share(share: GroupedShare) -> str:
    if not share.count:
        return "-"
    low, high = share.interval
    return f"{share.share:.0%} ({low:.0%} to {high:.0%})"


def _alpha(agreement: Agreement) -> str:
    low, high = agreement.alpha_interval
    return "-" if math.isnan(agreement.alpha) else f"{agreement.alpha:.2f} ({low:.2f} to {high:.2f})"


def _likeness(total: float, count: int) -> str:
    return f"{total / count:.0%}" if count else "-"


def _seconds(counts: Counter[int]) -> str:
    middle = median(counts)
    return "-" if middle is None else f"{middle} s"
