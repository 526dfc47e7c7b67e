"""Corrections that are shown to the model: frozen in snapshots, chosen by similarity to a task (BM25).

The only file that imports bm25s. A snapshot is a folder that is named by its content and never changes:

    examples.jsonl   one sample a line, sorted: question and answer as a model reads and writes them
    manifest.json    the hash of that file and of each case's lines, where they came from, and when

The same snapshot and task give the same examples in every process. A snapshot holds only samples of the
training split that passed every gate.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import bm25s
import numpy as np
import orjson

from draftloop.dataset.gates import group_of
from draftloop.dataset.sample import Sample, canonical
from draftloop.errors import InvalidValue, SetupError
from draftloop.labelling.labelling import Question
from draftloop.prompting.prompt import Case, Shown
from draftloop.support.files import creating_folder, disk_errors, remove_unfinished
from draftloop.support.text import fold, shingles

MOST = 5000  # of a case: reading them takes 1 s and 120 MB, choosing some 1 ms
_LINES, _MANIFEST = "examples.jsonl", "manifest.json"
_VERSION = 1
_HASH = 12  # hex digits in a name
_GRAMS = (2, 3)  # characters: Chinese words have two; parts of words distinguish words of other languages
_HOW = "Name one of the folders that draftloop freeze-examples wrote."

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it switches its own debug messages on

Key = tuple[str, str]  # name of the case, hash of its config


class Frozen(NamedTuple):
    """A snapshot that was written, or that was there already: then it is not `new`."""

    folder: Path
    new: bool
    counts: Mapping[str, int]  # by case


def freeze(
    folder: Path, samples: Iterable[Sample], datasets: Sequence[Mapping[str, str]], *, most: int = MOST
) -> Frozen:
    """Write a snapshot of the training samples of datasets; the caller locks the folder.

    Args:
        folder: Where snapshots are.
        samples: All samples of the datasets, held-out ones too: what one dataset holds out comes into no
            snapshot, even where another dataset trains on it.
        datasets: Of each, for the manifest: path, hash of its manifest, key that names source documents.
        most: How many samples of each case are taken, the newest ones.
    Raises:
        SetupError: There is nothing to show.
        ServiceError: The disk failed; no part of a snapshot is left then.
    """
    cases = _chosen(samples, most)
    if not cases:
        raise SetupError(
            "There is no sample for training to show.", hint="Correct tasks and run draftloop sync first."
        )
    parts = {key: b"".join(f"{canonical(row)}\n".encode() for row in rows) for key, rows in cases.items()}
    content = b"".join(parts.values())
    sha256 = hashlib.sha256(content).hexdigest()
    target = folder / sha256[:_HASH]
    counts = {f"{name} ({config})": len(rows) for (name, config), rows in cases.items()}
    if target.is_dir():
        return Frozen(target, new=False, counts=counts)
    manifest = {
        "version": _VERSION,
        "frozen_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": sha256,
        "cases": [
            {
                "case": name,
                "config_hash": config,
                "rows": len(cases[name, config]),
                "sha256": hashlib.sha256(part).hexdigest(),
            }
            for (name, config), part in parts.items()
        ],
        "datasets": list(datasets),
    }
    with disk_errors(folder, "Make room, or choose another --out."):
        remove_unfinished(folder)
        with creating_folder(target) as part:
            (part / _LINES).write_bytes(content)
            (part / _MANIFEST).write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n")
    return Frozen(target, new=True, counts=counts)


def _chosen(samples: Iterable[Sample], most: int) -> dict[Key, list[dict[str, Any]]]:
    """Return the samples that may be shown, by case: each question once, the newest, in a fixed order."""
    held: set[str] = set()
    newest_of: dict[Key, dict[str, tuple[str, dict[str, Any]]]] = defaultdict(dict)
    for sample in samples:
        if sample.split != "train":
            held |= {sample.group, sample.instruction}
            continue
        key = (sample.case, sample.metadata.get("config_hash", ""))
        row = {
            "case": key[0],
            "config_hash": key[1],
            "project": sample.project,
            "annotation": sample.annotation,
            "group": sample.group,
            "question": sample.instruction,
            "answer": sample.target,
        }
        dated = (sample.metadata.get("updated_at") or "", row)
        other = newest_of[key].get(sample.instruction)
        if other is None or _age(other) < _age(dated):
            newest_of[key][sample.instruction] = dated
    chosen = {}
    for key, rows in sorted(newest_of.items()):
        shown = [dated for dated in rows.values() if not held & {dated[1]["group"], dated[1]["question"]}]
        newest = [row for _, row in sorted(shown, key=_age)[-most:]]
        if newest:
            chosen[key] = sorted(newest, key=lambda row: (row["project"], row["annotation"]))
    return chosen


def _age(dated: tuple[str, dict[str, Any]]) -> tuple[str, int, int]:
    at, row = dated
    return at, row["project"], row["annotation"]


@dataclass(frozen=True)
class _Part:
    """The lines of one case in a snapshot, with their index."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    index: Any


class Snapshot:
    """A frozen snapshot in memory. Safe to ask from several threads."""

    def __init__(self, folder: Path, *, shown: int) -> None:
        """Read it.

        Args:
            folder: One that `freeze` wrote.
            shown: How many examples a task gets at most.
        Raises:
            SetupError: It is no snapshot, or was changed after it was frozen.
        """
        self._shown = shown
        try:
            manifest = json.loads((folder / _MANIFEST).read_bytes())
            content = (folder / _LINES).read_bytes()
            if manifest["version"] != _VERSION:
                raise ValueError(manifest["version"])
            self._group_keys = {entry["group_by"] for entry in manifest["datasets"]} - {""}
            sha256 = manifest["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SetupError(f"EXAMPLES: {folder} is no snapshot of corrections.", hint=_HOW) from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise SetupError(
                f"EXAMPLES: the snapshot {folder} is not what was frozen.",
                hint="Bring it back from a copy, or freeze the dataset again.",
            )
        lines: dict[Key, list[bytes]] = defaultdict(list)
        for line in content.splitlines(keepends=True):
            row = orjson.loads(line)
            lines[row["case"], row["config_hash"]].append(line)
        self._parts = {key: _part(part) for key, part in lines.items()}

    def manifest(self, case: Case) -> Mapping[str, Any]:
        """Return the part of a manifest that says which examples a case's tasks get; empty for none."""
        part = self._part(case)
        return {} if part is None else {"examples": {"snapshot": part.name, "shown": self._shown}}

    def find(self, case: Case, question: Question) -> tuple[Shown, ...]:
        """Return the examples most similar to a task; the most similar one comes last, next to the task.

        No example is of the task's own document, has exactly its text, or shares no run of characters with
        it. Of two that are equally similar the earlier one in the snapshot is taken.

        Args:
            case: The task's case.
            question: The task.
        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        part = self._part(case)
        if part is None:
            return ()
        text, data = question.text, question.task.data
        own = {group_of(question.inputs)}
        own |= {group_of({key: data[key]}) for key in self._group_keys if key in data}
        scores = part.index.get_scores(list(dict.fromkeys(_grams(text))))
        chosen: list[Shown] = []
        for place in np.argsort(-scores, kind="stable"):
            if len(chosen) == self._shown or scores[place] <= 0:
                break
            row = part.rows[place]
            if row["group"] not in own and row["question"] != text and _fits(case, row["answer"]):
                chosen.append(Shown(row["question"], row["answer"]))
        return tuple(reversed(chosen))

    def _part(self, case: Case) -> _Part | None:
        # Answers to options that a task brings fit that task alone.
        return None if case.labelling.dynamic else self._parts.get((case.name, case.labelling.config_hash))


def _fits(case: Case, answer: str) -> bool:
    """Return whether an answer fits the case as it is now: its schema may have changed since."""
    try:
        return case.labelling.encode(case.labelling.decode(answer)) == answer
    except InvalidValue:
        return False


def _part(lines: Sequence[bytes]) -> _Part:
    rows = [orjson.loads(line) for line in lines]
    index = bm25s.BM25()
    index.index([_grams(row["question"]) for row in rows], create_empty_token=False, show_progress=False)
    return _Part(hashlib.sha256(b"".join(lines)).hexdigest()[:_HASH], rows, index)


def _grams(text: str) -> list[str]:
    folded = fold(text)
    return [gram for size in _GRAMS for gram in shingles(folded, size)]
