"""The history of a task's annotations in a dataset: which became samples and which did not, and why.

Knows records. Does not know files.
"""

from collections.abc import Iterator, Sequence

from draftloop.dataset.corpus import DatasetOptions, split_of
from draftloop.dataset.formats import FORMATS
from draftloop.dataset.sample import Record, Sample


def story(records: Sequence[Record], options: DatasetOptions) -> Iterator[str]:
    """Yield the history of one task line by line.

    Args:
        records: The task's records from samples.jsonl, held.jsonl and rejected.jsonl.
        options: The dataset's options.
    """
    yield f"Task {records[0]['task']} of project {records[0]['project']}, case {records[0]['case']}:"
    for record in sorted(records, key=lambda one: int(one["annotation"])):
        yield from _annotation(record, options)


def _annotation(record: Record, options: DatasetOptions) -> Iterator[str]:
    by = record["metadata"]
    when = f" at {by['updated_at']}" if "updated_at" in by else ""
    yield f"Annotation {record['annotation']}, by annotator {by.get('human', 'unknown')}{when}:"
    if "gate" in record:
        yield f"  rejected by {record['gate']}: {record['reason']}"
        return
    if record["verdict"] == "written":
        yield "  written without a draft that can be read"
    else:
        score = f", score {by['draft_score']:.2f}" if "draft_score" in by else ""
        changed = f"corrected in {', '.join(record['changed'])}" if record["changed"] else "accepted"
        yield f"  draft by {by.get('draft_version', 'unknown')}{score}: {changed}"
    yield f"  it says {record['target']}"
    if "run" in by:
        left = ", ".join(file["path"] for file in record.get("output_files", ())) or "no file"
        yield f"  its code was run by {by['run_by']} (run {by['run']}): it left {left}"
    yield f"  passed {', '.join(record['gates'])}"
    if "review" in record:
        review = record["review"]
        comment = f": {review['comment']}" if "comment" in review else ""
        yield f"  reviewer {review['by']} at {review['at']}: {review['verdict']}{comment}"
    yield from (f"  noted by {note['gate']}: {note['reason']}" for note in record["notes"])
    if "tokens" in record:
        yield f"  {record['tokens']} tokens of at most {options.max_tokens}"
    if "held" in record:
        yield f"  held back by {record['held']['gate']}: {record['held']['reason']}"
        return
    own = split_of(record["group"])
    kept = "by the hash of its group" if own == record["split"] else "as nearly the same text, or as before"
    yield f"  in {record['split']}, {kept} ({record['group']})"
    sample = Sample.from_record(record)
    written = {form.name: len(form.rows(sample)) for form in FORMATS if form.name in options.formats}
    yield "  rows: " + ", ".join(f"{count} in {name}" for name, count in written.items())
