"""The rows of files that are imported: which become tasks, which exist already, which are bad."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from draftloop.errors import SetupError, TaskError
from draftloop.importing.code_tasks import CodeTasks
from draftloop.importing.rows import ReadRow, Row, fingerprint, read_rows
from draftloop.labelling.labelling import STATUS_KEY, Labelling, Task
from draftloop.labelling.regions import regions_of
from draftloop.labelstudio.tasks import NewTask
from draftloop.support.progress import Progress

_MOST_REFUSED = 100  # by Label Studio; a dozen requests single out each
# Of an exported annotation, besides its result.
_KEPT = (("was_cancelled", bool), ("ground_truth", bool), ("lead_time", int | float))


class Importing:
    """An import of files into a project.

    problems  rows that are not imported, and why
    lost      annotations that are not imported, and why
    notes     parts of whole files that are left out
    counts    rows by what became of them, and the kinds of things that came with them
    """

    def __init__(
        self, files: Sequence[Path], labelling: Labelling, code_tasks: CodeTasks, limit: int
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            files: The files, in their order.
            labelling: The project's.
            code_tasks: Completes the rows of code tasks.
            limit: Most tasks that are made; 0 is all.
        """
        self.files = files
        self.labelling = labelling
        self.code_tasks = code_tasks
        self.limit = limit
        self.problems: list[str] = []
        self.lost: list[str] = []
        self.notes: dict[str, None] = {}  # a set that keeps its order
        self.counts = Counter[str]()
        self._known: set[bytes] = set()
        self._seen: set[bytes] = set()

    def rows(self) -> Iterator[ReadRow]:
        """Read the rows of all files."""
        for file in self.files:

            def add_note(note: str, name: str = file.name) -> None:
                self.notes[f"{name} {note}"] = None

            for row in read_rows(
                file, self.labelling, code_tasks=self.code_tasks.expected, add_note=add_note
            ):
                yield row._replace(place=f"{file.name} {row.place}")

    def add_known(self, data: Row) -> None:
        """Remember a task that is in the project already."""
        with suppress(TaskError):  # a task that lacks the keys is no duplicate of anything
            self._known.add(self._fingerprint(data))

    def new_tasks(self, progress: Progress) -> Iterator[NewTask]:
        """Make tasks of the rows that are new; count what became of the others.

        Args:
            progress: Advances with each row; the caller begins it.
        """
        for read in self.rows():
            if self.limit and self.counts["sent"] >= self.limit:
                return
            progress.advance()
            try:
                if isinstance(read.data, str):
                    raise TaskError(read.data)
                data = self.code_tasks.fill(read.data)
                key = self._fingerprint(data)
            except TaskError as error:
                self.problems.append(f"{read.place}: {error.message.removeprefix('Task 0: ')}")
                continue
            kind = "already there" if key in self._known else "twice" if key in self._seen else "sent"
            self._seen.add(key)
            self.counts.update([kind, *read.left_out])
            if kind == "sent":
                annotations = list(self._annotations(read, data))
                self.counts["annotations"] += len(annotations)
                shown = {STATUS_KEY: ""} if self.labelling.shows_status else {}
                yield NewTask({**data, **shown}, annotations, read.place)
            elif read.annotations:
                where = "there already" if key in self._known else "twice in the files"
                self.lost.append(f"{read.place}: its annotations, for the task is {where}")

    def refuse(self, place: str, words: str) -> None:
        """Remember a row that Label Studio refuses.

        Raises:
            SetupError: It refuses so many that the project or the files are wrong as a whole.
        """
        self.problems.append(f"{place}: {words}")
        self.counts["refused"] += 1
        if self.counts["refused"] >= _MOST_REFUSED:
            raise SetupError(
                f"Label Studio refuses {_MOST_REFUSED} rows, the last one {place}: {words}",
                hint="Compare the files with the project's labelling config.",
            )

    def _fingerprint(self, data: Row) -> bytes:
        return fingerprint(self.labelling, data, code_task=self.code_tasks.expected)

    def _annotations(self, read: ReadRow, data: Row) -> Iterator[Row]:
        """Yield the annotations that the project's config can read, as Label Studio imports them."""
        for annotation in read.annotations:
            result = annotation.get("result")
            try:
                self.labelling.from_regions(result, Task(0, data))
            except TaskError as error:
                self.lost.append(f"{read.place}: an annotation, for it cannot be read: {error.message}")
                continue
            # `completed_by` may be another user here; without `ground_truth` Label Studio sets that.
            kept = {key: annotation[key] for key, kind in _KEPT if isinstance(annotation.get(key), kind)}
            yield {"result": regions_of(result), "ground_truth": False, **kept}
