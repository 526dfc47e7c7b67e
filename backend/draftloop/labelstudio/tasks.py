"""Tasks, annotations and predictions of Label Studio: listed at any size, imported, submitted.

Goes through the HTTP client directly, because the SDK's models make listings several times slower.
"""

import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import NamedTuple

from draftloop.errors import DraftloopError, ServiceError, SetupError
from draftloop.labelstudio.listing import Listing
from draftloop.labelstudio.queries import (
    BRIEF,
    FULL,
    NOT_SUBMITTED,
    SKIPPED,
    SUBMITTED,
    UNBEGUN,
    WITHOUT_PREDICTIONS,
    Filters,
    Project,
    undrafted,
    where,
)
from draftloop.labelstudio.requests import Connection, Fields, Json, dumps

_INVALID = 400
_IMPORT_TASKS = 2000
_IMPORT_BYTES = 20_000_000  # Label Studio takes 250 MB a body; this keeps both sides' memory small
# For each request, whatever its size, Label Studio counts all tasks that have some: 20 s at 25,000.
_PREDICTIONS = 5000
# A listing of all predictions takes 4 s and 18 MB for 25,000. Those of unannotated tasks are not needed.
_LISTED, _LISTED_SHARE = 50_000, 4


class NewTask(NamedTuple):
    """A task that is imported with annotations, whose author becomes the importing user.

    place  where its row stands in a file, for messages
    """

    data: Fields
    annotations: Sequence[Fields] = ()
    place: str = ""


class _Sent(NamedTuple):
    place: str
    body: bytes


class Tasks(Connection):
    """The tasks of a project."""

    def import_tasks(
        self,
        project: Project,
        rows: Iterable[Fields | NewTask],
        *,
        refuse: Callable[[str, str], None] | None = None,
    ) -> Iterator[list[int]]:
        """Import rows of task data in bounded chunks; yields each chunk's ids, in the order of the rows.

        Args:
            project: Where to.
            rows: What to import.
            refuse: Called with the place of each row that Label Studio refuses, and the reason; the others
                are imported. Without it one such row is an error.
        Raises:
            SetupError: Label Studio refuses a chunk, for example because the config shows a missing key.
            ServiceError: The last chunk may have arrived or not; those yielded before did.
        """
        for chunk in _chunks(map(_imported, rows)):
            yield from self._import_chunk(project, chunk, refuse)

    def _import_chunk(
        self, project: Project, chunk: Sequence[_Sent], refuse: Callable[[str, str], None] | None
    ) -> Iterator[list[int]]:
        """Import a chunk; where Label Studio refuses it, import its halves, down to single rows."""
        what, path = f"{len(chunk)} tasks for project {project.id}", f"api/projects/{project.id}/import"
        params = {"return_task_ids": "true", "commit_to_project": "true"}
        try:
            answer = self._send(what, "POST", path, b"[%b]" % b",".join(sent.body for sent in chunk), params)
        except SetupError as error:
            status = getattr(error.__cause__, "status_code", None)
            if refuse is None or status != _INVALID:
                raise
            if len(chunk) == 1:
                refuse(chunk[0].place, error.message)
                return
            for half in (chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]):
                yield from self._import_chunk(project, half, refuse)
            return
        ids = answer.get("task_ids") or []
        if answer.get("task_count") != len(chunk) or len(ids) != len(chunk):
            raise ServiceError(
                f"Label Studio made {len(ids)} of {len(chunk)} tasks in project {project.id}.",
                hint="Run the same import again: what is there already is skipped.",
            )
        yield ids

    def tasks(
        self,
        project: Project,
        *,
        since: str | None = None,
        lacking: str | None = None,
        status: str | None = None,
        unbegun: bool = False,
        full: bool = False,
    ) -> Iterator[dict[str, Json]]:
        """List tasks in the order of their ids, page by page; memory holds three pages.

        Args:
            project: The project.
            since: Only tasks changed after this moment, in the form of Label Studio's `updated_at`.
            lacking: Only tasks without a prediction of this model version.
            status: Only tasks whose `draft_status` holds these words.
            unbegun: Only tasks that no human has begun: no annotation, none skipped, no saved draft of one.
            full: With annotations and predictions, results included; else id, data and times.
        """
        filters = _chosen(lacking, unbegun=unbegun)
        if since is not None:
            filters.append(where("updated_at", "greater", "Datetime", since))
        if status is not None:
            filters.append(where("data.draft_status", "contains", "String", status))
        return self._pages(project, filters, FULL if full else BRIEF)

    def annotated_tasks(self, project: Project) -> Iterator[dict[str, Json]]:
        """List the tasks that have an annotation, with annotations and predictions; first the submitted.

        In a page of tasks predictions take Label Studio six times as long as in a listing of their own, which
        it has only for a whole project, in one answer. That listing is read where it is not too long, and
        not mostly about tasks without an annotation.
        """
        kinds = ([SUBMITTED], [NOT_SUBMITTED, SKIPPED])
        listed = project.predictions <= min(_LISTED, _LISTED_SHARE * project.annotations)
        fields = WITHOUT_PREDICTIONS if listed else FULL
        # With "review" Label Studio leaves out the columns of its table, a tenth of the time. The commercial
        # edition has reviews, and may leave out tasks too.
        if self._get("the version", "api/version/").get("edition") == "Community":
            fields = {**fields, "review": "true"}
        submitted, others = (self._pages(project, filters, fields) for filters in kinds)
        if not listed:
            yield from submitted
            yield from others
            return
        with Listing() as predictions:
            first = list(islice(submitted, 1))  # so that the next pages are read while predictions arrive
            self._stream(
                f"predictions of project {project.id}",
                "api/predictions/",
                {"project": project.id},
                predictions.fill,
            )
            yield from self._joined(project, chain(first, submitted, others), predictions)

    def _joined(
        self, project: Project, pages: Iterator[dict[str, Json]], predictions: Listing
    ) -> Iterator[dict[str, Json]]:
        while page := {task["id"]: task for task in islice(pages, self.page_tasks)}:
            later = []
            for number, task in page.items():
                task["predictions"] = predictions.of(number)
                known = {None, *(prediction["id"] for prediction in task["predictions"])}
                if any(one.get("parent_prediction") not in known for one in task["annotations"]):
                    later.append(number)  # drafted and annotated after the predictions were listed
            page.update((task["id"], task) for task in self.tasks_by_id(project, later, full=True))
            yield from page.values()

    def tasks_by_id(
        self, project: Project, ids: Collection[int], *, unbegun: bool = False, full: bool = False
    ) -> Iterator[dict[str, Json]]:
        """List some tasks: id, data and times. Unlike opening them, this does not have them drafted.

        Args:
            project: The project.
            ids: The tasks; those that do not exist are left out.
            unbegun: Only tasks that no human has begun.
            full: With annotations and predictions, results included.
        """
        if not ids:
            return
        among = where("id", "in", "Number", {"min": min(ids), "max": max(ids)})
        filters = [among, *_chosen(None, unbegun=unbegun)]
        for task in self._pages(project, filters, FULL if full else BRIEF):
            if task["id"] in ids:
                yield task

    def count_tasks(self, project: Project, *, lacking: str | None = None, unbegun: bool = False) -> int:
        """Count the tasks that `tasks` lists with the same arguments; one request."""
        return self._total(project, _chosen(lacking, unbegun=unbegun))

    def count_annotated(self, project: Project) -> int:
        """Count the tasks that have an annotation, submitted or skipped; one request."""
        return self._total(project, [SUBMITTED, SKIPPED], join="or")

    def newest_change(self, project: Project) -> str | None:
        """Return the latest `updated_at` of the project's tasks; None when it has none."""
        fields = {"include": "updated_at", "page_size": 1}
        page = self._page(project, [], fields, order="-tasks:updated_at")
        return str(page["tasks"][0]["updated_at"]) if page["tasks"] else None

    def set_task_data(self, task_id: int, data: Fields) -> None:
        """Replace a task's whole data; Label Studio has no way to change one key."""
        self._send(f"task {task_id}", "PATCH", f"api/tasks/{task_id}/", dumps({"data": dict(data)}))

    def _pages(self, project: Project, filters: Filters, fields: Fields) -> Iterator[dict[str, Json]]:
        """List page by page; a page starts after the last id of the one before.

        So a task that is added or deleted meanwhile moves no other task to another page. While the caller
        works on a page, the next two are read.
        """

        def after(last: int) -> list[dict[str, Json]]:
            beyond = where("id", "greater", "Number", last)
            tasks: list[dict[str, Json]] = self._page(project, [*filters, beyond], fields)["tasks"]
            return tasks

        def following(before: Future[list[dict[str, Json]]]) -> list[dict[str, Json]]:
            page = before.result()
            return after(page[-1]["id"]) if len(page) == self._page_size(fields) else []

        reader = ThreadPoolExecutor(1, "page")
        try:
            first = reader.submit(after, 0)
            coming = deque([first, reader.submit(following, first)])
            while page := coming.popleft().result():
                coming.append(reader.submit(following, coming[-1]))
                yield from page
        finally:
            reader.shutdown(wait=False, cancel_futures=True)

    def _total(self, project: Project, filters: Filters, **how: str) -> int:
        return int(self._page(project, filters, {"include": "id", "page_size": 1}, **how)["total"])

    def _page_size(self, fields: Fields) -> int:
        return min(int(fields.get("page_size", self.page_tasks)), self.page_tasks)

    def _page(
        self, project: Project, filters: Filters, fields: Fields, join: str = "and", order: str = "tasks:id"
    ) -> dict[str, Json]:
        query = {"filters": {"conjunction": join, "items": list(filters)}, "ordering": [order]}
        params = {
            "project": project.id,
            # A listing would sign the URLs in a task's data, and they would be written back so.
            "resolve_uri": "false",
            "query": json.dumps(query, separators=(",", ":")),
            **fields,
            "page_size": self._page_size(fields),
        }
        page: dict[str, Json] = self._get(f"tasks of project {project.id}", "api/tasks/", params)
        return page

    def has_prediction(self, task_id: int, version: str) -> bool:
        """Return whether a task has a prediction of this version."""
        predictions = self._get(f"predictions of task {task_id}", "api/predictions/", {"task": task_id})
        return any(prediction.get("model_version") == version for prediction in predictions)

    def import_predictions(
        self, project: Project, predictions: Sequence[Fields], *, unjudged: Collection[str] = ()
    ) -> list[int]:
        """Store predictions of one model version where a task has none of it yet.

        Existing predictions are read before anything is sent, and again after an answer that leaves open what
        was stored: so no prediction is lost or stored twice.

        Args:
            project: The project.
            predictions: `task`, `result`, `score` and `model_version` each; one per task.
            unjudged: Controls whose regions the validator of Label Studio's bulk import rejects. Predictions
                with such regions are stored one at a time, by a call that does not validate.
        Returns:
            Ids of the tasks whose prediction Label Studio does not take.
        Raises:
            ServiceError: Label Studio stays away.
        """
        refused: list[int] = []
        for start in range(0, len(predictions), _PREDICTIONS):
            batch = predictions[start : start + _PREDICTIONS]
            by_task = {prediction["task"]: prediction for prediction in batch}
            refused += self._import_batch(project, by_task, unjudged)
        return refused

    def _import_batch(
        self, project: Project, batch: Mapping[int, Fields], unjudged: Collection[str]
    ) -> list[int]:
        path = f"api/projects/{project.id}/import/predictions"
        version = next(iter(batch.values()))["model_version"]
        among = where("id", "in", "Number", {"min": min(batch), "max": max(batch)})
        problem: DraftloopError | None = None
        answered = False
        for _ in range(3):
            pages = self._pages(project, [among, undrafted(version)], {"include": "id"})
            lacking = {task["id"] for task in pages}
            waiting = [prediction for task_id, prediction in batch.items() if task_id in lacking]
            if answered or not waiting:
                return [prediction["task"] for prediction in waiting]
            what = f"{len(waiting)} predictions for project {project.id}"
            single = [prediction for prediction in waiting if _names(prediction) & set(unjudged)]
            together = [prediction for prediction in waiting if prediction not in single]
            try:
                for prediction in single:
                    self._send(what, "POST", "api/predictions/", dumps(prediction))
                answer = self._send(what, "POST", path, dumps(together)) if together else {"created": 0}
            except DraftloopError as error:
                # One task deleted meanwhile makes a 400 of the whole batch; a lost answer says nothing.
                problem = error
            else:
                # Label Studio leaves out what it does not take and answers 201 all the same.
                answered = True
                if answer.get("created") == len(together):
                    return []
        raise problem or ServiceError("Label Studio did not say what became of the predictions.")

    def retrieve_predictions(self, project: Project, task_ids: Sequence[int]) -> None:
        """Have Label Studio itself ask its ML backend for predictions, as the menu of its pages does.

        Label Studio answers 200 also when the backend failed: look at the tasks afterwards.
        """
        body = dumps({"selectedItems": {"all": False, "included": list(task_ids)}})
        params = {"project": project.id, "id": "retrieve_tasks_predictions"}
        self._send(f"predictions of project {project.id}", "POST", "api/dm/actions", body, params)

    def submit_annotation(
        self,
        task_id: int,
        regions: Sequence[Fields],
        *,
        parent_prediction: int | None = None,
        lead_time_s: float | None = None,
    ) -> int:
        """Submit an annotation as the labelling page does; returns its id."""
        body = {"result": list(regions), "parent_prediction": parent_prediction, "lead_time": lead_time_s}
        path = f"api/tasks/{task_id}/annotations/"
        return int(self._send(f"task {task_id}", "POST", path, dumps(body))["id"])


def _chosen(lacking: str | None, *, unbegun: bool) -> list[dict[str, Json]]:
    chosen = [] if lacking is None else [undrafted(lacking)]
    return [*chosen, *UNBEGUN] if unbegun else chosen


def _imported(row: Fields | NewTask) -> _Sent:
    task = row if isinstance(row, NewTask) else NewTask(row)
    annotations = {"annotations": list(task.annotations)} if task.annotations else {}
    return _Sent(task.place, dumps({"data": dict(task.data), **annotations}))


def _names(prediction: Fields) -> set[Json]:
    return {region.get("from_name") for region in prediction["result"]}


def _chunks(rows: Iterator[_Sent]) -> Iterator[list[_Sent]]:
    chunk: list[_Sent] = []
    size = 0
    for row in rows:
        if chunk and (len(chunk) >= _IMPORT_TASKS or size + len(row.body) > _IMPORT_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row.body)
    if chunk:
        yield chunk
