"""The door to Label Studio: projects, connections, tabs, tasks and predictions over its API.

Knows addresses, tokens, pages, retries and what Label Studio answers when something is wrong. Does not
know labelling, drafts or datasets: tasks and predictions pass through as Label Studio writes them.
The only file that imports label_studio_sdk. The SDK does what it does well; tasks and predictions go
through its HTTP client directly, because its models make listings several times slower.

Whatever creates something is sent again only if it never arrived; everything else also after a 5xx.
"""

import base64
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self, TypeVar

import httpx
import orjson
from label_studio_sdk.client import LabelStudio as Sdk
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.core.request_options import RequestOptions
from label_studio_sdk.types import ViewDataRequestRequest
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from backend.errors import DraftloopError, ServiceError, SetupError

Outcome = Literal["made", "updated", "already there"]
Json = Any
Fields = Mapping[str, Json]
Filters = Sequence[Fields]
_T = TypeVar("_T")

TITLE = "draftloop"  # of the backend connection, so that it is found again when the address moves
EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED")  # the last one is plural there
TABS = ("All tasks", "Needs a human", "Passed the rules")
SENT_BACK_TAB = "Sent back"
NEXT_TAB = "Label next"
# Hidden in tabs made in its page, but shown in ours unless told: reasons would stand beyond the edge.
_HIDDEN = [
    f"tasks:{name}"
    for name in (
        *("inner_id", "annotations_results", "annotations_ids", "predictions_model_versions"),
        *("predictions_results", "file_upload", "storage_filename", "created_at", "updated_at", "updated_by"),
        *("avg_lead_time", "allow_skip", "draft_exists"),
    )
]
_HIDDEN_IN_A_TASK = [
    f"tasks:{name}"
    for name in ("id", "completed_at", "cancelled_annotations", "total_predictions", "annotators")
]

_REASON_PX = 380  # a sentence or two on the three lines that a tab shows of a task
_PAGE = 500  # tasks a listing page: 0.2 s without, 0.6 s with annotations and predictions
_IMPORT_TASKS = 2000
_IMPORT_BYTES = 20_000_000  # Label Studio takes 250 MB a body; this keeps both sides' memory small
# Whatever the number, Label Studio counts anew over all tasks that have some: 20 s a request at 25,000.
_PREDICTIONS = 5000
_CREATE_S = 600  # limit of a request that creates; what it did is read before anything is sent again
_ATTEMPTS = 6  # 0.5 + 1 + 2 + 4 + 8 s of waiting: longer than a restart of Label Studio
_DETAIL_CHARS = 300
_SECRET_CHARS = 4  # what is shorter would blot out half of a message
_HOW_TO_LOG_IN = (
    "Make one in Label Studio under Account & Settings: a Personal Access Token, or a Legacy Token. If the "
    "page does not offer legacy tokens, an owner enables them under Organization > API Tokens Settings. "
    "Put it in LABEL_STUDIO_API_KEY or pass --api-key."
)


@dataclass(frozen=True)
class Project:
    """A project of Label Studio. `extra_params` is what the connection to its backend says besides.

    annotations  how many were submitted
    """

    id: int
    title: str
    created_at: str
    label_config: str
    model_version: str
    extra_params: Fields = field(default_factory=dict)
    annotations: int = 0

    @property
    def case(self) -> str | None:
        """Name of the case that the connection says, if any."""
        said = self.extra_params.get("case")
        return said if isinstance(said, str) else None


class LabelStudio:
    """A Label Studio server and a token for it; legacy and personal access tokens both work."""

    def __init__(self, url: str, api_key: str, *, timeout_s: float = 120) -> None:
        """Remember server and token; nothing is sent yet.

        Args:
            url: Address, with the path where Label Studio is mounted below one.
            api_key: Legacy token, or personal access token (a refresh JWT).
            timeout_s: Limit of one request; an import of 2000 tasks takes a few seconds.
        Raises:
            SetupError: There is no token, or it has expired.
        """
        self.url = url.rstrip("/")
        api_key = api_key.strip()
        self._secrets = [api_key]
        if not re.fullmatch(r"[!-~]+", api_key):
            found = "something that is no token" if api_key else "no token"
            raise SetupError(f"There is {found} for Label Studio at {self.url}.", hint=_HOW_TO_LOG_IN)
        # The SDK joins the refresh path to this address: without the slash a mount path is lost.
        self._sdk = self._ask("the token", partial(_sdk, f"{self.url}/", api_key, timeout_s))
        self._http = self._sdk._client_wrapper.httpx_client  # noqa: SLF001  # SDK: no public way to it

    def close(self) -> None:
        """Close the connections."""
        self._http.httpx_client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------ projects

    def check(self) -> str:
        """Ask who we are, once, without waiting for a server that is down; returns the user's name.

        Raises:
            SetupError: The token is not accepted, or this is not Label Studio.
            ServiceError: Nobody answers.
        """
        user = self._ask("the token", self._sdk.users.whoami, attempts=1)
        if not user.id:
            raise self._ours("the user", ValueError("an answer without a user"))
        return str(user.email or user.username or user.id)

    def project(self, project_id: int) -> Project:
        """Read a project and the case that its backend connection names.

        Raises:
            SetupError: There is no such project, or the token may not see it.
        """
        found = self._get(f"project {project_id}", f"api/projects/{project_id}/")
        return Project(
            id=found["id"],
            title=found["title"],
            created_at=found["created_at"],
            label_config=found["label_config"],
            model_version=found["model_version"] or "",
            extra_params=_extra_params(self._get("ML backends", "api/ml/", {"project": project_id})),
            annotations=found.get("total_annotations_number") or 0,
        )

    def find_project(self, title: str) -> Project | None:
        """Find the project that has exactly this title.

        Raises:
            SetupError: Several projects have it.
        """

        def exactly() -> list[int]:
            found: Iterator[Json] = iter(self._sdk.projects.list(title=title))
            return [project.id for project in found if project.title == title]

        ids = self._ask("the list of projects", exactly)
        if len(ids) > 1:
            raise SetupError(
                f"Projects {', '.join(map(str, sorted(ids)))} are all called '{title}'.",
                hint="Say which one with --project ID.",
            )
        return self.project(ids[0]) if ids else None

    def create_project(self, title: str, label_config: str) -> Project:
        """Make a project.

        Raises:
            SetupError: Label Studio refuses the title (at least 3 characters) or the config.
        """
        create = partial(self._sdk.projects.create, title=title, label_config=label_config)
        return self.project(int(self._ask(f"project '{title}'", create, creates=True).id or 0))

    def set_label_config(self, project: Project, label_config: str) -> None:
        """Replace a project's labelling config.

        Raises:
            SetupError: Label Studio refuses it, for example because annotations use what it removes.
        """
        update = partial(self._sdk.projects.update, project.id, label_config=label_config)
        self._ask(f"the labelling config of project {project.id}", update)

    def set_model_version(self, project: Project, version: str) -> None:
        """Make a version the one whose scores the tabs show; predictions of it must exist already."""
        update = partial(self._sdk.projects.update, project.id, model_version=version)
        self._ask(f"model version {version} of project {project.id}", update)

    # ------------------------------------------------------------------------------ connections, tabs

    def connect_backend(
        self,
        project: Project,
        url: str,
        extra_params: Fields,
        *,
        user: str = "",
        password: str = "",
        interactive: bool = False,
    ) -> dict[str, Outcome]:
        """Connect an ML backend and its webhook, both with basic auth if there is a user.

        Label Studio makes a webhook for every backend, without the backend's auth and for every event;
        that one is given the header and only the events of annotations.

        Args:
            project: The project.
            url: The backend, as Label Studio reaches it.
            extra_params: What the backend is told besides; what people added in Label Studio's form stays.
            user: For basic auth; empty is none.
            password: For basic auth.
            interactive: Have Label Studio offer Auto-Annotation. What people switched on stays on.
        Returns:
            What happened to the "backend" and to the "webhook".
        Raises:
            SetupError: Label Studio cannot reach the backend, or the backend refuses config or auth.
        """
        if password:
            self._secrets += [password, _basic(user, password)]
        url = url.rstrip("/")
        known = self._get("ML backends", "api/ml/", {"project": project.id})
        same = [backend for backend in known if backend["url"].rstrip("/") == url]
        old = next(iter(same or [backend for backend in known if backend["title"] == TITLE]), None)
        wanted: dict[str, Json] = {
            "project": project.id,
            "url": url,
            "title": TITLE,
            # A string, because Label Studio's form shows and edits one.
            "extra_params": json.dumps(
                {**_extra_params([old] if old else []), **extra_params}, ensure_ascii=False, sort_keys=True
            ),
            "auth_method": "BASIC_AUTH" if user else "NONE",
            **({"basic_auth_user": user} if user else {}),
            **({"is_interactive": True} if interactive else {}),
        }
        secret = {"basic_auth_pass": password} if user else {}
        what = f"the ML backend at {url}"
        outcome: Outcome = "made"
        if old is None:
            self._ask(what, partial(self._sdk.ml.create, **wanted, **secret), creates=True)
        else:
            # Sent even if nothing seems to differ: the password cannot be read back.
            self._ask(what, partial(self._sdk.ml.update, old["id"], **wanted, **secret))
            outcome = "already there" if _holds(old, wanted) else "updated"
        header = {"Authorization": _basic(user, password)} if user else {}
        return {"backend": outcome, "webhook": self._connect_webhook(project, url, old, header)}

    def _connect_webhook(
        self, project: Project, url: str, old: Fields | None, header: Mapping[str, str]
    ) -> Outcome:
        hooks = self._get("webhooks", "api/webhooks/", {"project": project.id})
        at = {hook["url"]: hook for hook in hooks if hook["project"] == project.id}
        old_url = old["url"].rstrip("/") if old else url
        hook = at.get(f"{url}/webhook") or at.get(f"{old_url}/webhook")
        wanted: dict[str, Json] = {
            "url": f"{url}/webhook",
            "headers": dict(header),
            "send_payload": True,
            "send_for_all_actions": False,
            "actions": sorted(EVENTS),
            "is_active": True,
        }
        what = f"the webhook to {url}"
        if hook is None:
            self._ask(what, partial(self._sdk.webhooks.create, project=project.id, **wanted), creates=True)
            return "made"
        if _holds({**hook, "actions": sorted(hook["actions"])}, wanted):
            return "already there"
        self._ask(what, partial(self._sdk.webhooks.update, hook["id"], **wanted))
        return "updated" if old else "made"  # Label Studio itself has made it along with the backend

    def keep_tabs(self, project: Project, *, shows_status: bool) -> dict[str, Outcome]:
        """Make the saved tabs, or mend their filters; columns and order that people chose stay.

        Args:
            project: The project.
            shows_status: Whether tasks carry `draft_status`, which says why a draft needs a human.
                Without it the tabs go by score, and a draft that broke a rule has score 0.
        Returns:
            What happened to each tab, by title.
        """
        known = self._tabs(project)
        outcomes: dict[str, Outcome] = {}
        for title in TABS:
            if title == TABS[0] and known and title not in known:
                continue  # people's own tabs are there: they have one that shows everything
            items = _tab_filters(title, shows_status=shows_status)
            outcomes[title] = self._keep_tab(project, known.get(title), title, items)
        return outcomes

    def keep_sent_back_tab(self, project: Project, words: str) -> Outcome:
        """Make or mend the saved tab with the tasks whose status holds these words."""
        items = [_filter("data.draft_status", "contains", "String", words)]
        return self._keep_tab(project, self._tabs(project).get(SENT_BACK_TAB), SENT_BACK_TAB, items)

    def keep_next_tab(self, project: Project) -> Outcome:
        """Make or mend the saved tab with the tasks that have a `label_next`, in its order.

        What is submitted or skipped leaves it by itself.
        """
        items = [_filter("data.label_next", "empty", "String", "false"), *_UNDONE]
        view = self._tabs(project).get(NEXT_TAB)
        return self._keep_tab(project, view, NEXT_TAB, items, order="tasks:data.label_next")

    def _tabs(self, project: Project) -> dict[str, Json]:
        views = self._get("tabs", "api/dm/views/", {"project": project.id})
        return {view["data"].get("title"): view for view in views}

    def _keep_tab(
        self, project: Project, view: Json, title: str, items: Filters, *, order: str = ""
    ) -> Outcome:
        """Make or mend a tab; where an order is named, that is part of what is mended."""
        wanted: dict[str, Json] = {"filters": {"conjunction": "and", "items": list(items)}}
        wanted |= {"ordering": [order]} if order else {}
        if view is not None and _holds(view["data"], wanted):
            return "already there"
        ordering = ["tasks:predictions_score"] if items else []
        hidden = {"explore": _HIDDEN, "labeling": _HIDDEN + _HIDDEN_IN_A_TASK}
        fresh = {
            "title": title,
            "type": "list",
            "target": "tasks",
            "ordering": ordering,
            "hiddenColumns": hidden,
            "columnsWidth": {"tasks:data.draft_status": _REASON_PX},
        }
        data = ViewDataRequestRequest(**{**(view["data"] if view else fresh), **wanted})
        tab = {"project": project.id, "data": data}
        if view is None:
            self._ask(f"tab '{title}'", partial(self._sdk.views.create, **tab), creates=True)
            return "made"
        self._ask(f"tab '{title}'", partial(self._sdk.views.update, str(view["id"]), **tab))
        return "updated"

    # ------------------------------------------------------------------------------ tasks, predictions

    def import_tasks(self, project: Project, rows: Iterable[Fields]) -> Iterator[list[int]]:
        """Import rows of task data in bounded chunks; yields each chunk's ids, in the order of the rows.

        Raises:
            SetupError: Label Studio refuses a chunk, for example because the config shows a missing key.
            ServiceError: It is not known whether the last chunk arrived; what was yielded before did.
        """
        for chunk in _chunks(_json({"data": dict(row)}) for row in rows):
            what, path = f"{len(chunk)} tasks for project {project.id}", f"api/projects/{project.id}/import"
            params = {"return_task_ids": "true", "commit_to_project": "true"}
            answer = self._send(what, "POST", path, b"[%b]" % b",".join(chunk), params)
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
        """List tasks by rising id, page by page; memory holds two pages.

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
            filters.append(_filter("updated_at", "greater", "Datetime", since))
        if status is not None:
            filters.append(_filter("data.draft_status", "contains", "String", status))
        return self._pages(project, filters, _FULL if full else _BRIEF)

    def annotated_tasks(self, project: Project) -> Iterator[dict[str, Json]]:
        """List the tasks that have an annotation, with annotations and predictions; first the submitted."""
        yield from self._pages(project, [_SUBMITTED], _FULL)
        yield from self._pages(project, [_NOT_SUBMITTED, _SKIPPED], _FULL)

    def tasks_by_id(
        self, project: Project, ids: Collection[int], *, unbegun: bool = False, full: bool = False
    ) -> Iterator[dict[str, Json]]:
        """List some tasks: id, data and times. Reading them so has no draft made, as opening them would.

        Args:
            project: The project.
            ids: The tasks; those that there are not are left out.
            unbegun: Only tasks that no human has begun.
            full: With annotations and predictions, results included.
        """
        if not ids:
            return
        among = _filter("id", "in", "Number", {"min": min(ids), "max": max(ids)})
        filters = [among, *_chosen(None, unbegun=unbegun)]
        for task in self._pages(project, filters, _FULL if full else _BRIEF):
            if task["id"] in ids:
                yield task

    def count_tasks(self, project: Project, *, lacking: str | None = None, unbegun: bool = False) -> int:
        """Count a project's tasks, or those that `tasks` lists so; one request."""
        return self._total(project, _chosen(lacking, unbegun=unbegun))

    def count_annotated(self, project: Project) -> int:
        """Count the tasks that have an annotation, submitted or skipped; one request."""
        return self._total(project, [_SUBMITTED, _SKIPPED], join="or")

    def newest_change(self, project: Project) -> str | None:
        """Give the latest `updated_at` of the project's tasks; None when it has none."""
        fields = {"include": "updated_at", "page_size": 1}
        page = self._page(project, [], fields, order="-tasks:updated_at")
        return str(page["tasks"][0]["updated_at"]) if page["tasks"] else None

    def set_task_data(self, task_id: int, data: Fields) -> None:
        """Replace a task's whole data; Label Studio has no way to change one key."""
        self._send(f"task {task_id}", "PATCH", f"api/tasks/{task_id}/", _json({"data": dict(data)}))

    def _pages(self, project: Project, filters: Filters, fields: Fields) -> Iterator[dict[str, Json]]:
        """List page by page; a page starts after the last id of the one before.

        So a task that comes or goes meanwhile moves no other task across a page's edge. While a page is
        worked on, the next one is on its way.
        """

        def after(last: int) -> list[dict[str, Json]]:
            beyond = _filter("id", "greater", "Number", last)
            found: list[dict[str, Json]] = self._page(project, [*filters, beyond], fields)["tasks"]
            return found

        reader = ThreadPoolExecutor(1, "page")
        try:
            page = after(0)
            while len(page) == _PAGE:
                coming = reader.submit(after, page[-1]["id"])
                yield from page
                page = coming.result()
            yield from page
        finally:
            reader.shutdown(wait=False, cancel_futures=True)

    def _total(self, project: Project, filters: Filters, **how: str) -> int:
        return int(self._page(project, filters, {"include": "id", "page_size": 1}, **how)["total"])

    def _page(
        self, project: Project, filters: Filters, fields: Fields, join: str = "and", order: str = "tasks:id"
    ) -> dict[str, Json]:
        query = {"filters": {"conjunction": join, "items": list(filters)}, "ordering": [order]}
        params = {
            "project": project.id,
            "page_size": _PAGE,
            # A listing would sign the URLs in a task's data, and they would be written back so.
            "resolve_uri": "false",
            "query": json.dumps(query, separators=(",", ":")),
            **fields,
        }
        page: dict[str, Json] = self._get(f"tasks of project {project.id}", "api/tasks/", params)
        return page

    def has_prediction(self, task_id: int, version: str) -> bool:
        """Tell whether a task has a prediction of this version."""
        found = self._get(f"predictions of task {task_id}", "api/predictions/", {"task": task_id})
        return any(prediction.get("model_version") == version for prediction in found)

    def import_predictions(
        self, project: Project, predictions: Sequence[Fields], *, unjudged: Collection[str] = ()
    ) -> list[int]:
        """Store predictions of one model version where a task has none of it yet.

        What is there is read before anything is sent, and read again after an answer that leaves open
        what was stored: no prediction is lost or stored twice.

        Args:
            project: The project.
            predictions: `task`, `result`, `score` and `model_version` each; one per task.
            unjudged: Controls whose regions Label Studio's bulk import does not know. Predictions that
                hold some are stored one at a time, by the call that judges nothing.
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
        among = _filter("id", "in", "Number", {"min": min(batch), "max": max(batch)})
        problem: DraftloopError | None = None
        answered = False
        for _ in range(3):
            pages = self._pages(project, [among, _lacking(version)], {"include": "id"})
            lacking = {task["id"] for task in pages}
            waiting = [prediction for task_id, prediction in batch.items() if task_id in lacking]
            if answered or not waiting:
                return [prediction["task"] for prediction in waiting]
            what = f"{len(waiting)} predictions for project {project.id}"
            alone = [found for found in waiting if _names(found) & set(unjudged)]
            together = [found for found in waiting if found not in alone]
            try:
                for prediction in alone:
                    self._send(what, "POST", "api/predictions/", _json(prediction))
                answer = self._send(what, "POST", path, _json(together)) if together else {"created": 0}
            except DraftloopError as error:
                # A task deleted meanwhile makes a 400 of the whole batch; a lost answer says nothing.
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
        body = _json({"selectedItems": {"all": False, "included": list(task_ids)}})
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
        """Submit an annotation as the labelling page does; gives its id."""
        body = {"result": list(regions), "parent_prediction": parent_prediction, "lead_time": lead_time_s}
        path = f"api/tasks/{task_id}/annotations/"
        return int(self._send(f"task {task_id}", "POST", path, _json(body))["id"])

    def project_ids(self) -> list[int]:
        """List the projects that the token may see."""

        def every() -> list[int]:
            found: Iterator[Json] = iter(self._sdk.projects.list())
            return [project.id for project in found]

        return sorted(self._ask("the list of projects", every))

    # ------------------------------------------------------------------------------ requests

    def send(
        self,
        what: str,
        method: str,
        path: str,
        body: bytes = b"",
        params: Fields | None = None,
        *,
        content_type: str = "application/json",
    ) -> Json:
        """Send a request that no method here is for, with the token, tried again as all others are.

        Args:
            what: What it is about, for messages.
            method: A POST creates something, so it is sent again only if it never arrived.
            path: Below the address, without a slash in front.
            body: Its body.
            params: Its query.
            content_type: What the body is.
        Returns:
            The answer's JSON.
        Raises:
            SetupError: Label Studio refuses it, or does not accept the token.
            ServiceError: Label Studio stays away.
        """
        return self._send(what, method, path, body, params, content_type)

    def _get(self, what: str, path: str, params: Fields | None = None) -> Json:
        return self._send(what, "GET", path, params=params)

    def _send(
        self,
        what: str,
        method: str,
        path: str,
        body: bytes = b"",
        params: Fields | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """Send a request; every POST here creates something."""
        kind = {"Content-Type": content_type} if body else {}
        query = dict(params or {})
        limit: RequestOptions = {"timeout": _CREATE_S} if method == "POST" else {}

        def request() -> Json:
            reply = self._http.request(
                path, method=method, params=query, content=body or None, headers=kind, request_options=limit
            )
            answer = _answer(reply)
            if not reply.is_success or isinstance(answer, str):
                raise ApiError(status_code=reply.status_code, body=answer)
            return answer

        return self._ask(what, request, creates=method == "POST")

    def _ask(
        self, what: str, request: Callable[[], _T], *, creates: bool = False, attempts: int = _ATTEMPTS
    ) -> _T:
        retrying = Retrying(
            stop=stop_after_attempt(attempts),
            wait=wait_exponential_jitter(multiplier=0.5, max=8),
            retry=retry_if_exception(_never_arrived if creates else _passing),
            reraise=True,
        )
        try:
            return retrying(request)
        except (ApiError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._ours(what, error) from error

    def _ours(self, what: str, error: Exception) -> DraftloopError:
        """Translate what the SDK and httpx raise; the class says the reaction."""
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return SetupError(f"'{self.url}' is no address.", hint="Correct LABEL_STUDIO_URL.")
        if isinstance(error, httpx.HTTPError):
            words = f"Label Studio at {self.url} does not answer ({type(error).__name__})."
            return ServiceError(words, hint="Start it, or correct LABEL_STUDIO_URL.")
        status = (error.status_code if isinstance(error, ApiError) else None) or 0
        detail = self._detail(error.body) if isinstance(error, ApiError) else ""
        if status < 400:
            words = f"What answers at {self.url} is not Label Studio ({what})."
            return SetupError(words, hint="Correct LABEL_STUDIO_URL.")
        if _passing(error):
            words = f"Label Studio answers {status} to {what}: {detail}."
            return ServiceError(words, hint="Its log says why.")
        if status == 401:
            words = f"Label Studio at {self.url} does not accept the token ({detail})."
        elif status == 404:
            words = f"Label Studio at {self.url} has no {what}."
        else:
            words = f"Label Studio refuses {what}: {detail}."
        return SetupError(words, hint=_hint_for(status, detail))

    def _detail(self, body: Json) -> str:
        """Give what an error's body says, short and without secrets."""
        if isinstance(body, Mapping):
            body = body.get("validation_errors") or body.get("detail") or body
        text = " ".join(_sentences(body))
        if "<html" in text[:500].lower():
            text = "an HTML page"
        for secret in self._secrets:
            if len(secret) >= _SECRET_CHARS:
                text = text.replace(secret, "***")
        # What follows in the one about the backend is advice on firewalls and a Python object.
        text = " ".join(re.sub(r"<[^>]*>", "", text).split()).split(" Make sure it is up")[0]
        return (text[:_DETAIL_CHARS] + ("..." if len(text) > _DETAIL_CHARS else "")).rstrip(".")


def _sentences(body: Json) -> Iterator[str]:
    """Take the sentences out of an error's nested lists and objects; a field's name goes before its own."""
    if isinstance(body, Mapping):
        for name, part in body.items():
            words = " ".join(_sentences(part))
            yield words if name == "non_field_errors" else f"{name}: {words}"
    elif isinstance(body, list):
        for part in body:
            yield from _sentences(part)
    else:
        yield str(body)


def _answer(reply: httpx.Response) -> Json:
    """Read what an answer says; text where it is no JSON."""
    for read in (orjson.loads, json.loads):  # orjson refuses the half characters that SQLite keeps
        try:
            return read(reply.content)
        except ValueError:
            continue
    return reply.text


def _json(body: Json) -> bytes:
    """Serialize what is sent; half characters and integers beyond 64 bits, which Label Studio keeps, too."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return json.dumps(body).encode()


def _sdk(base_url: str, api_key: str, timeout_s: float) -> Sdk:
    # No proxy from the environment sees the texts; trying again is `_ask`'s business.
    client = httpx.Client(timeout=timeout_s, follow_redirects=True, trust_env=False)
    return Sdk(base_url=base_url, api_key=api_key, httpx_client=client, timeout=timeout_s, max_retries=0)


def _passing(error: BaseException) -> bool:
    """Tell whether asking the same again may help and cannot harm."""
    if isinstance(error, ApiError):
        return error.status_code is not None and (error.status_code >= 500 or error.status_code in {408, 429})
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def _never_arrived(error: BaseException) -> bool:
    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


def _hint_for(status: int, detail: str) -> str:
    if status == 401:
        return _HOW_TO_LOG_IN
    if status == 404:
        return "Check the number and the address."
    if "reserved network address" in detail:
        return "Start Label Studio with ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false."
    if "connect to ML" in detail:
        return "Start the backend (scripts/serve), or correct its address and basic auth."
    if status == 403:
        return "Use the token of a user who may do this."
    return "Correct what it names and run this again."


def _extra_params(backends: Sequence[Fields]) -> Fields:
    """Read the extra_params of our connection: an object, or a string that holds one."""
    for backend in backends:
        extra = backend.get("extra_params")
        if isinstance(extra, str):
            try:
                extra = json.loads(extra)
            except ValueError:
                continue
        if isinstance(extra, Mapping) and (
            backend.get("title") == TITLE or isinstance(extra.get("case"), str)
        ):
            return extra
    return {}


def _holds(found: Fields, wanted: Fields) -> bool:
    return all(found.get(key) == part for key, part in wanted.items())


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _filter(column: str, operator: str, kind: str, value: Json) -> dict[str, Json]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


_SUBMITTED = _filter("total_annotations", "greater", "Number", 0)
_NOT_SUBMITTED = _filter("total_annotations", "equal", "Number", 0)
_SKIPPED = _filter("cancelled_annotations", "greater", "Number", 0)
_UNDONE = (_NOT_SUBMITTED, _filter("cancelled_annotations", "equal", "Number", 0))
_UNBEGUN = (
    *_UNDONE,
    _filter("draft_exists", "equal", "Boolean", value=False),  # of any user
)
_BRIEF = {"include": "id,data,created_at,updated_at"}
# Names count for tasks and for what hangs on them alike. What is not named is not looked up: drafts, for
# one, take a query for each task.
_FULL = {
    "fields": "all",
    "include": "id,data,created_at,updated_at,annotations,predictions,result,completed_by,was_cancelled,"
    "ground_truth,lead_time,parent_prediction",
}


def _lacking(version: str) -> dict[str, Json]:
    return _filter("predictions_model_versions", "not_contains", "List", [version])


def _chosen(lacking: str | None, *, unbegun: bool) -> list[dict[str, Json]]:
    chosen = [] if lacking is None else [_lacking(lacking)]
    return [*chosen, *_UNBEGUN] if unbegun else chosen


def _tab_filters(title: str, *, shows_status: bool) -> list[dict[str, Json]]:
    drafted = _filter("total_predictions", "greater", "Number", 0)
    if title == "Needs a human":
        if shows_status:
            return [_filter("data.draft_status", "empty", "String", "false")]
        return [_filter("predictions_score", "in", "Number", {"min": 0, "max": 0})]
    if title == "Passed the rules":
        if shows_status:
            return [_filter("data.draft_status", "empty", "String", "true"), drafted]
        return [_filter("predictions_score", "greater", "Number", 0)]
    return []


def _names(prediction: Fields) -> set[Json]:
    return {region.get("from_name") for region in prediction["result"]}


def _chunks(rows: Iterator[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for row in rows:
        if chunk and (len(chunk) >= _IMPORT_TASKS or size + len(row) > _IMPORT_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row)
    if chunk:
        yield chunk
