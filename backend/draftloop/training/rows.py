"""Rows of dataset folders as tokens: trained rows, replayed rows, and rows that are left out.

Rows come from the folder's own files (formats `messages` and `trl-dpo`) and are tokenized as the served
model reads them: `model.tokens` renders the chat template of the base model's folder. Drafts are requested
without the programs that led to an answer, so a row is only the question and the answer. The loss covers
the answer and the token that ends it. No row is ever cut.
"""

import hashlib
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from draftloop.dataset.folder import MANIFEST, damaged, manifest_of
from draftloop.dataset.row_files import read
from draftloop.errors import SetupError, TaskError
from draftloop.model.control_tokens import control_tokens_in
from draftloop.model.tokens import Encoded
from draftloop.support.files import hash_file
from draftloop.training.base import Base
from draftloop.training.recipe import Recipe

SFT, DPO = "messages", "trl-dpo"  # formats of backend/draftloop/dataset/formats.py
_ENDINGS = {"jsonl": "jsonl", "zstd": "jsonl.zst", "parquet": "parquet"}
_MAX_NAMED = 20  # of left-out rows in the manifest
_MAX_TESTS = 256  # held-out rows for the mean loss: enough for a stable mean, and takes seconds
Ids = Sequence[int]  # an array: four bytes a token


class TrainingRow(NamedTuple):
    """A row as tokens; the loss covers `start` to `end`, half-open."""

    ids: Ids
    start: int
    end: int


class TrainingPair(NamedTuple):
    """A question with a human's correction and the draft that it corrects."""

    prompt: Ids
    chosen: Ids
    rejected: Ids


@dataclass(frozen=True)
class Dataset:
    """A dataset folder whose files match its manifest."""

    folder: Path
    manifest_sha256: str
    cases: tuple[str, ...]
    ending: str
    formats: tuple[str, ...]

    def file(self, form: str, *, held_out: bool = False) -> Path:
        """Return the file of a format's rows.

        Raises:
            SetupError: The dataset was written without this format.
        """
        if form not in self.formats:
            raise SetupError(
                f"{self.folder} has no rows of the format {form}.",
                hint="Run: draftloop sync --out FOLDER "
                + " ".join(f"--format {name}" for name in (*self.formats, form)),
            )
        return self.folder / f"{form}{'.test' if held_out else ''}.{self.ending}"

    def record(self) -> dict[str, str]:
        """Return the dataset's entry in a run's manifest."""
        return {"path": str(self.folder), "manifest_sha256": self.manifest_sha256}


class Replay(NamedTuple):
    """A dataset of another kind, some of whose rows are mixed in.

    share   number of its rows for each row of the trained dataset, at most all of its rows
    """

    dataset: Dataset
    share: float


@dataclass
class LeftOutRows:
    """Rows that are not trained, and why."""

    too_long: int = 0
    held_out: int = 0
    not_rendered: int = 0
    longest: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)

    def add_not_rendered(self, file: Path, number: int, reason: str) -> None:
        """Count a row that the base model's chat template refuses or changes; list the first ones."""
        self.not_rendered += 1
        if len(self.refused) < _MAX_NAMED:
            self.refused.append({"file": str(file), "line": number, "reason": reason})

    def add_too_long(self, file: Path, number: int, tokens: int) -> None:
        """Count a row that is longer than the limit; list the first ones."""
        self.too_long += 1
        if len(self.longest) < _MAX_NAMED:
            self.longest.append({"file": str(file), "line": number, "tokens": tokens})


@dataclass(frozen=True)
class TrainingCorpus:
    """All rows of a run; the first `own` rows are the dataset's, the rest are replayed.

    tests   held-out rows of the dataset, to report the loss on; they are not trained on
    """

    rows: tuple[TrainingRow, ...]
    own: int
    pairs: tuple[TrainingPair, ...]
    tests: tuple[TrainingRow, ...]
    left_out: LeftOutRows

    def counts(self) -> dict[str, Any]:
        """Return the counts for a run's manifest."""
        return {
            "own": self.own,
            "replayed": len(self.rows) - self.own,
            "pairs": len(self.pairs),
            "longest_tokens": max(len(row.ids) for row in self.rows),
            "held_out": self.left_out.held_out,
            "too_long": self.left_out.too_long,
            "too_long_rows": self.left_out.longest,
            "not_rendered": self.left_out.not_rendered,
            "not_rendered_rows": self.left_out.refused,
        }


def open_dataset(folder: Path) -> Dataset:
    """Look at a dataset folder, all bytes of it.

    Raises:
        SetupError: It has no manifest, or a file is not as the manifest says.
    """
    folder = folder.resolve()
    manifest = manifest_of(folder)
    if manifest is None:
        raise SetupError(
            f"{folder} is no dataset: it has no {MANIFEST}.",
            hint="Name a folder that draftloop sync wrote to its end.",
        )
    wrong = damaged(folder, manifest)
    if wrong is not None:
        raise SetupError(
            f"{folder / wrong} is not the file that the manifest names.",
            hint="It was changed, or a sync was cut short: run the same draftloop sync again.",
        )
    try:
        cases = {entry["source"]["case"]: None for entry in manifest["projects"].values()}
        ending = _ENDINGS[manifest["options"]["files"]]
        formats = tuple(manifest["options"]["formats"])
    except (KeyError, TypeError) as error:
        raise SetupError(
            f"The manifest of {folder} is not of this program.", hint="Run the sync again."
        ) from error
    return Dataset(folder, hash_file(folder / MANIFEST), tuple(cases), ending, formats)


def open_replay(words: str) -> Replay:
    """Parse `FOLDER` or `FOLDER:SHARE`.

    Raises:
        SetupError: There is no such dataset, or the share is none.
    """
    folder, colon, number = words.rpartition(":")
    if not colon or "/" in number:
        return Replay(open_dataset(Path(words)), 1.0)
    try:
        share = float(number)
    except ValueError:
        share = 0
    if not 0 < share <= 100:
        raise SetupError(
            f"--replay {words}: '{number}' is no share.",
            hint="Write FOLDER:0.5 for one replayed row to two of the dataset.",
        )
    return Replay(open_dataset(Path(folder)), share)


def case_of(dataset: Dataset, wanted: str) -> str:
    """Return the case that an adapter is for.

    Raises:
        SetupError: The dataset holds several cases and none is named, or it lacks the named one.
    """
    if not wanted and len(dataset.cases) == 1:
        return dataset.cases[0]
    if wanted not in dataset.cases:
        raise SetupError(
            f"{dataset.folder} holds samples of: {', '.join(dataset.cases) or 'no case'}.",
            hint="Name one of them with --case: the one that the adapter will be measured on.",
        )
    return wanted


def gather(
    dataset: Dataset, replays: Sequence[Replay], base: Base, recipe: Recipe, *, dpo: bool
) -> TrainingCorpus:
    """Read and tokenize all rows.

    Args:
        dataset: The dataset to train on.
        replays: Datasets to mix in.
        base: The base model, with chat template, tokenizer and limits.
        recipe: Limits, and the seed that draws replayed rows.
        dpo: Whether to read pairs too.
    Raises:
        SetupError: There are too few rows, the base model does not fit them, or a file is missing.
    """
    if base.positions is not None and recipe.max_tokens > base.positions:
        raise SetupError(
            f"max_tokens is {recipe.max_tokens}, but {base.name} was made for {base.positions} tokens.",
            hint=f"Set max_tokens={base.positions} or less.",
        )
    left_out = LeftOutRows()
    held_out = {
        question
        for one in (dataset, *(replay.dataset for replay in replays))
        for question in _questions(one.file(SFT, held_out=True))
    }
    reader = _RowReader(base, recipe.max_tokens, held_out, left_out)
    rows = list(reader.rows(dataset.file(SFT)))
    own = len(rows)
    _check_count(own, recipe.min_rows, "rows", dataset, left_out)
    for replay in replays:
        others = list(reader.rows(replay.dataset.file(SFT)))
        count = min(len(others), round(replay.share * own))
        drawn = random.Random(recipe.seed).sample(range(len(others)), count)  # noqa: S311  to be repeatable
        rows += [others[index] for index in sorted(drawn)]
    pairs = tuple(reader.pairs(dataset.file(DPO))) if dpo else ()
    if dpo:
        _check_count(len(pairs), recipe.min_rows, "pairs of a draft and its correction", dataset, left_out)
    of_tests = _RowReader(base, recipe.max_tokens, set(), LeftOutRows())
    tests = tuple(islice(of_tests.rows(dataset.file(SFT, held_out=True)), _MAX_TESTS))
    return TrainingCorpus(tuple(rows), own, pairs, tests, left_out)


class _RowReader:
    """Reads rows as tokens and counts the rows that it leaves out."""

    def __init__(self, base: Base, limit: int, held_out: set[bytes], left_out: LeftOutRows) -> None:
        self._base, self._limit, self._held_out, self._left_out = base, limit, held_out, left_out

    def rows(self, file: Path) -> Iterator[TrainingRow]:
        """Yield the rows of a file of the format `messages`."""
        for number, row in enumerate(read(file), 1):
            encoded = self._encoded(file, number, [*_question_messages(row["messages"]), row["messages"][-1]])
            if encoded is not None:
                start = len(encoded.prompt)
                ids = array("i", encoded.prompt + encoded.answer + encoded.tail)
                yield TrainingRow(ids, start, start + len(encoded.answer))

    def pairs(self, file: Path) -> Iterator[TrainingPair]:
        """Yield the pairs of a file of the format `trl-dpo`."""
        for number, row in enumerate(read(file), 1):
            question = _question_messages(row["prompt"])
            chosen = self._encoded(file, number, [*question, *row["chosen"]])
            rejected = chosen and self._encoded(file, number, [*question, *row["rejected"]])
            if chosen and rejected:
                yield TrainingPair(
                    array("i", chosen.prompt), array("i", chosen.answer), array("i", rejected.answer)
                )

    def _encoded(self, file: Path, number: int, messages: Sequence[Mapping[str, Any]]) -> Encoded | None:
        if _hash(messages[:-1]) in self._held_out:
            self._left_out.held_out += 1
            return None
        texts = [str(message["content"]) for message in messages]
        control = control_tokens_in(texts, self._base.tokens.control)
        if control:
            self._left_out.add_not_rendered(file, number, f"It holds {', '.join(control)}.")
            return None
        try:
            encoded = self._base.tokens.encode(messages)
        except TaskError as error:
            self._left_out.add_not_rendered(file, number, error.message)
            return None
        if not encoded.answer or encoded.answer[-1] not in self._base.stops:
            raise SetupError(
                f"After an answer, the chat template of {self._base.name} writes no token that ends it: "
                "the adapter would never learn to stop.",
                hint="Its generation_config.json has to name that token in eos_token_id.",
            )
        size = sum(map(len, encoded))
        if size > self._limit:
            self._left_out.add_too_long(file, number, size)
            return None
        return encoded


def _check_count(count: int, minimum: int, what: str, dataset: Dataset, left_out: LeftOutRows) -> None:
    if count < minimum:
        lost = [f"{left_out.too_long} are too long"] * bool(left_out.too_long)
        lost += [f"{left_out.held_out} are held out"] * bool(left_out.held_out)
        hint = "Correct more tasks and sync again, or set min_rows lower."
        if left_out.refused:
            lost.append(
                f"{left_out.not_rendered} cannot be written by the base model's chat template, "
                "the first of them: " + left_out.refused[0]["reason"].rstrip(".")
            )
            hint = f"{hint} If no row can be written, use a base model whose template takes them."
        more = f" ({', '.join(lost)})" if lost else ""
        raise SetupError(
            f"{dataset.folder} has {count} {what} to train on{more}; {minimum} are needed.", hint=hint
        )


def _questions(file: Path) -> Iterator[bytes]:
    for row in read(file):
        yield _hash(_question_messages(row["messages"]))


def _question_messages(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the messages of a draft's request: everything before the first answer or call of a program."""
    return list(takewhile(lambda message: message["role"] != "assistant", messages))


def _hash(messages: Sequence[Mapping[str, Any]]) -> bytes:
    return hashlib.blake2b(orjson.dumps(messages, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
