"""The report of a dataset: one page of HTML with everything in it, for a screen and for paper.

Knows how figures are shown and which of them want to be looked at first. Does not know how they are
counted (`tally`) or files. The page holds no script, loads nothing, and tells no time: the same dataset
gives the same page. Every text is escaped; no text of a task stands in it but what a gate's reason says.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from draftloop.dataset.agreement import Agreement
from draftloop.dataset.code_gates import CODE_GATES, NOT_RUN_AGAIN
from draftloop.dataset.corpus import CORPUS_GATES, DatasetOptions
from draftloop.dataset.gates import PERSONAL_DATA, SAMPLE_GATES
from draftloop.dataset.markup import STYLE, Cell, bar_chart, paragraph, table
from draftloop.dataset.sample import Gate
from draftloop.dataset.spot_check import ByLot, Stratum
from draftloop.dataset.tally import Drafts, Tally, median
from draftloop.support.intervals import GroupedShare

_FEW = 20  # of something: below, its share says little
_LOW_ACCEPTANCE = 0.5  # of drafts: below, annotators write more than they check
_LOW_ALPHA = 0.667  # Krippendorff's lower limit for tentative conclusions
_MANY_STOPPED = 0.1
_SHOWN_CHARS = 240  # of a reason; the whole stands in the records
_DAYS = 60  # shown of a version, the last ones


def report_page(
    tally: Tally, strata: Sequence[Stratum], options: DatasetOptions, by_lot: ByLot | None = None
) -> str:
    """Give the report as one HTML page.

    Args:
        tally: The figures.
        strata: What spot checks drew and found.
        options: What the team decided.
        by_lot: What became of the samples that were drawn by lot alone; None where nothing is drawn.
    """
    counts = tally.counts.record()
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><title>Dataset report</title>',
        f"<style>{STYLE}</style></head><body>",
        "<h1>Dataset report</h1>",
        paragraph(
            "{annotations} annotations of {tasks} tasks = {samples} samples + {held} held + {rejected} "
            "rejected".format_map(counts),
            "sum",
        ),
        paragraph("{samples} samples = {train} train + {test} test".format_map(counts)),
        "<h2>Look at first</h2>",
        _first(tally, strata, options, by_lot),
        *_gates(tally),
        *_drafts(tally),
        *_lengths(tally, options),
        *_splits(tally),
        *_people(tally),
        *_agreement(tally),
        *_spot_checks(strata, options, by_lot),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


# ---------------------------------------------------------------------------------- what to look at first


def _first(tally: Tally, strata: Sequence[Stratum], options: DatasetOptions, by_lot: ByLot | None) -> str:
    found = list(_findings(tally, strata, options, by_lot))
    if not found:
        return paragraph("Nothing stands out.")
    return f'<ul class="first">{"".join(f"<li>{escape(words)}</li>" for words in found)}</ul>'


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


# ---------------------------------------------------------------------------------- sections


def _gates(tally: Tally) -> Iterator[str]:
    counts = tally.counts.record()
    yield "<h2>Gates</h2>"
    left = counts["annotations"]
    rows: list[list[Cell]] = []
    of_code = [gate for gate in CODE_GATES if gate.name in counts["stopped_by"]]
    gates: tuple[Gate[Any, Any], ...] = (*SAMPLE_GATES, *of_code, *CORPUS_GATES)
    known = [gate.name for gate in gates]
    for gate in (*(name for name in counts["stopped_by"] if name not in known), *known):
        count = counts["stopped_by"].get(gate, 0)
        left -= count
        examples = "<br>".join(
            escape(f"task {task}, annotation {annotation}: {_cut(reason)}")
            for task, annotation, reason in tally.examples.get(gate, ())
        )
        rows.append([gate, count, left, examples])
    yield table(["gate", "stopped", "left", "for example"], rows, numbers={1, 2}, html={3})
    if counts["noted_by"]:
        noted = [[gate, count] for gate, count in counts["noted_by"].items()]
        yield table(["noted, not stopped", "samples"], noted, numbers={1})


def _drafts(tally: Tally) -> Iterator[str]:
    counts = tally.counts.record()
    yield "<h2>Drafts and corrections</h2>"
    yield paragraph(
        "{samples} samples = {accepted} drafts accepted + {corrected} corrected + {written} written without "
        "one".format_map(counts)
    )
    if tally.versions:
        rows: list[list[Cell]] = [
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
        head = ["version of the draft", "judged", "accepted", "share (95 %)", "median time", "by day"]
        yield table(head, rows, numbers={1, 2, 3, 4}, html={5})
    yield paragraph(f"Median time without a draft: {_seconds(tally.undrafted_s)}.")
    fields: list[list[Cell]] = [
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
    if fields:
        head = ["case", "field", "drafted", "corrected", "share (95 %)", "kept of a corrected one"]
        yield table(head, fields, numbers={2, 3, 4, 5})
    if tally.deciles:
        bars = []
        for tenth in range(10):
            right, wrong = tally.deciles[tenth, True], tally.deciles[tenth, False]
            bars.append((f"{tenth / 10:.1f}", right, right + wrong))
        yield paragraph("Score of the draft, and how many were accepted (dark) of those judged:")
        yield bar_chart(bars)


def _lengths(tally: Tally, options: DatasetOptions) -> Iterator[str]:
    yield "<h2>Lengths and writing</h2>"
    if not tally.lengths:
        yield paragraph("There is no sample.")
        return
    limit = f"; what is longer than {options.max_tokens} is held" if tally.unit == "tokens" else ""
    yield paragraph(f"Samples by length, up to so many {tally.unit}{limit}:")
    yield bar_chart([(str(end), count, count) for end, count in sorted(tally.lengths.items())])
    rows: list[list[Cell]] = [
        [name, count] for name, count in sorted(tally.writings.items(), key=lambda item: (-item[1], item[0]))
    ]
    yield table(["most letters of the input are", "samples"], rows, numbers={1})


def _splits(tally: Tally) -> Iterator[str]:
    yield "<h2>Splits</h2>"
    cases = sorted({case for case, _ in tally.splits})
    rows: list[list[Cell]] = [
        [case, tally.splits[case, "train"], tally.splits[case, "test"]] for case in cases
    ]
    yield table(["case", "train", "test"], rows, numbers={1, 2})


def _people(tally: Tally) -> Iterator[str]:
    yield "<h2>Annotators</h2>"
    rows: list[list[Cell]] = [
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
    head = ["annotator", "samples", "held", "rejected", "drafts accepted", "corrected", "median time"]
    yield table(head, rows, numbers={1, 2, 3, 4, 5, 6})


def _agreement(tally: Tally) -> Iterator[str]:
    yield "<h2>Agreement</h2>"
    found = [(case, "the whole answer", one) for case, one in sorted(tally.agreement.items())]
    found += [
        (case, name, field.agreement)
        for (case, name), field in sorted(tally.fields.items())
        if field.agreement.tasks
    ]
    if not found:
        yield paragraph("No task has valid annotations of several annotators.")
        return
    rows: list[list[Cell]] = [
        [case, name, one.tasks, f"{one.observed:.0%}", _alpha(one)]
        for case, name, one in sorted(found, key=lambda entry: entry[0])
    ]
    head = ["case", "of", "tasks", "same answers", "Krippendorff's alpha (95 %)"]
    yield table(head, rows, numbers={2, 3, 4})


def _spot_checks(strata: Sequence[Stratum], options: DatasetOptions, by_lot: ByLot | None) -> Iterator[str]:
    yield "<h2>Spot checks</h2>"
    if not strata:
        yield paragraph("None were drawn (--spot-check).")
        return
    rows: list[list[Cell]] = []
    for one in strata:
        low, high = one.interval
        shown = f"{low:.0%} to {high:.0%}" if one.checked else "-"
        rows.append([one.name, one.samples, one.drawn, one.checked, one.failed, shown])
    yield paragraph(f"{options.spot_check:.0%} are drawn, and held until a second human has passed them.")
    if by_lot is not None:
        yield paragraph(_of_all(by_lot))
    yield paragraph("Each kind by itself, as its samples are now; each has one that is drawn at least:")
    head = ["stratum", "samples", "drawn", "checked", "wrong", "share of wrong ones (95 %)"]
    yield table(head, rows, numbers={1, 2, 3, 4, 5})


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
    """Draw a bar for each day: accepted ones dark, judged ones light."""
    days = sorted({day for day, _ in drafts.days})[-_DAYS:]
    most = max(drafts.days[day, True] + drafts.days[day, False] for day in days)
    parts = []
    for place, day in enumerate(days):
        right, whole = drafts.days[day, True], drafts.days[day, True] + drafts.days[day, False]
        words = f"<title>{escape(day or 'unknown')}: {right} of {whole}</title>"
        for count, kind in ((whole, ' class="b"'), (right, "")):
            tall = count / most * 24
            where = f'x="{place * 5}" y="{24 - tall:.1f}" width="4" height="{tall:.1f}"'
            parts.append(f"<rect{kind} {where}>{words}</rect>")
    span = [escape(days[0])] if len(days) == 1 else [f"{escape(days[0])} to", escape(days[-1])]
    below = " ".join(f'<span class="quiet">{part}</span>' for part in span)
    size = f'width="{len(days) * 5}" height="24" viewBox="0 0 {len(days) * 5} 24"'
    return f'<svg role="img" {size}>{"".join(parts)}</svg>{below}'


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


def _seconds(found: Counter[int]) -> str:
    middle = median(found)
    return "-" if middle is None else f"{middle} s"
