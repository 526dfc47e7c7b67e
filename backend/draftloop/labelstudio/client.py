"""The door to Label Studio: projects and connections, and all that its parts can do."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count

from draftloop.errors import SetupError
from draftloop.labelstudio.queries import Project
from draftloop.labelstudio.requests import Fields, Json, holds
from draftloop.labelstudio.tabs import Outcome, Tabs
from draftloop.labelstudio.tasks import Tasks

TITLE = "draftloop"  # of the backend connection, by which it is recognized when its address changes
EVENTS = (
    "ANNOTATION_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
)  # Label Studio writes the last one in the plural


class LabelStudio(Tabs, Tasks):
    """A Label Studio server and a token for it; legacy and personal access tokens work."""

    def check(self) -> str:
        """Check the token, without waiting for a server that is down; returns the user's name.

        Raises:
            SetupError: The token is not accepted, or this is not Label Studio.
            ServiceError: Nobody answers.
        """
        user = self._ask("the token", self._sdk.users.whoami, attempts=1)
        if not user.id:
            raise self._translated("the user", ValueError("an answer without a user"))
        return str(user.email or user.username or user.id)

    def project(self, project_id: int) -> Project:
        """Read a project and the case that its backend connection names.

        Raises:
            SetupError: There is no such project, or the token may not see it.
        """
        answer = self._get(f"project {project_id}", f"api/projects/{project_id}/")
        return Project(
            id=answer["id"],
            title=answer["title"],
            created_at=answer["created_at"],
            label_config=answer["label_config"],
            model_version=answer["model_version"] or "",
            extra_params=_extra_params(self._get("ML backends", "api/ml/", {"project": project_id})),
            annotations=answer.get("total_annotations_number") or 0,
            predictions=answer.get("total_predictions_number") or 0,
        )

    def count_annotations(self, project_id: int) -> int:
        """Return how many annotations a project has; one request, and no call of its ML backends.

        Raises:
            SetupError: There is no such project, or the token may not see it.
        """
        answer = self._get(f"project {project_id}", f"api/projects/{project_id}/")
        return int(answer.get("total_annotations_number") or 0)

    def project_ids(self) -> list[int]:
        """List the projects that the token may see."""
        return sorted(project["id"] for project in self._projects())

    def find_project(self, title: str) -> Project | None:
        """Find the project that has exactly this title.

        Raises:
            SetupError: Several projects have it.
        """
        ids = [project["id"] for project in self._projects(title=title) if project["title"] == title]
        if len(ids) > 1:
            raise SetupError(
                f"Projects {', '.join(map(str, sorted(ids)))} are all called '{title}'.",
                hint="Say which one with --project ID.",
            )
        return self.project(ids[0]) if ids else None

    def _projects(self, **wanted: str) -> Iterator[Json]:
        # The SDK asks for pages until one is missing, which its plain client takes for an error.
        for page in count(1):
            answer = self._get("the list of projects", "api/projects/", {"page": page, **wanted})
            yield from answer["results"]
            if not answer["next"]:
                return

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

    def connect_backend(
        self,
        project: Project,
        url: str,
        extra_params: Fields,
        *,
        user: str = "",
        password: str = "",
        webhook_secret: str = "",
        webhook: bool = True,
        interactive: bool = False,
    ) -> dict[str, Outcome]:
        """Connect an ML backend and its webhook, each with its own credentials.

        Label Studio makes a webhook for every backend, without the backend's auth and for every event;
        that one is given the header and only the events of annotations. Every member of Label Studio can read
        a webhook's headers, so the backend's own login is in none: where an earlier version put it there, it
        is replaced, in other webhooks of the project too.

        Args:
            project: The project.
            url: The backend, as Label Studio reaches it.
            extra_params: Label Studio sends these to the backend; what people added in its form stays.
            user: For basic auth; empty is none.
            password: For basic auth.
            webhook_secret: Bearer token that the webhook sends instead; empty sends none.
            webhook: Have Label Studio send events of annotations; else remove its webhooks to the backend.
            interactive: Have Label Studio offer Auto-Annotation. What people switched on stays on.
        Returns:
            What happened to the "backend", and to the "webhook" where there is or was one.
        Raises:
            SetupError: Label Studio cannot reach the backend, or the backend refuses config or auth.
        """
        login = _basic(user, password) if user else ""
        self._secrets += [secret for secret in (password, login, webhook_secret) if secret]
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
            try:
                self._ask(what, partial(self._sdk.ml.create, **wanted, **secret), creates=True)
            except SetupError:
                # Label Studio connects a backend, and then fails because it may not make a webhook to it.
                known = self._get("ML backends", "api/ml/", {"project": project.id})
                if webhook or url not in {backend["url"].rstrip("/") for backend in known}:
                    raise
        else:
            # Sent even if nothing seems to differ, because the password cannot be read back.
            self._ask(what, partial(self._sdk.ml.update, old["id"], **wanted, **secret))
            outcome = "already there" if holds(old, wanted) else "updated"
        hooks = [
            hook
            for hook in self._get("webhooks", "api/webhooks/", {"project": project.id})
            if hook["project"] == project.id
        ]
        old_url = old["url"].rstrip("/") if old else url
        addresses = [f"{url}/webhook", f"{old_url}/webhook"]
        if webhook:
            header = {"Authorization": f"Bearer {webhook_secret}"} if webhook_secret else {}
            connected = self._connect_webhook(project, hooks, addresses, header, login)
            # Where the backend was connected just now, Label Studio itself has made its webhook.
            return {"backend": outcome, "webhook": "made" if old is None else connected}
        ours = [hook for hook in hooks if hook["url"] in addresses or _carries(hook, login)]
        for hook in ours:
            self._ask("a webhook", partial(self._sdk.webhooks.delete, hook["id"]))
        return {"backend": outcome, "webhook": "removed"} if ours else {"backend": outcome}

    def _connect_webhook(
        self,
        project: Project,
        hooks: Sequence[Fields],
        addresses: Sequence[str],
        header: Mapping[str, str],
        login: str,
    ) -> Outcome:
        by_url = {hook["url"]: hook for hook in hooks}
        hook = next((by_url[address] for address in addresses if address in by_url), None)
        wanted: dict[str, Json] = {
            "url": addresses[0],
            "headers": dict(header),
            "send_payload": True,
            "send_for_all_actions": False,
            "actions": sorted(EVENTS),
            "is_active": True,
        }
        what = f"the webhook to {addresses[0]}"
        outcome: Outcome = "made"
        if hook is None:
            self._ask(what, partial(self._sdk.webhooks.create, project=project.id, **wanted), creates=True)
        elif holds({**hook, "actions": sorted(hook["actions"])}, wanted):
            outcome = "already there"
        else:
            self._ask(what, partial(self._sdk.webhooks.update, hook["id"], **wanted))
            outcome = "updated"
        for other in hooks:
            if other is not hook and _carries(other, login):
                # All fields are sent: Label Studio empties `actions` where they are missing.
                kept = {name: other[name] for name in wanted} | {"headers": dict(header)}
                self._ask(what, partial(self._sdk.webhooks.update, other["id"], **kept))
                outcome = "updated"
        return outcome


def _carries(hook: Fields, login: str) -> bool:
    return bool(login) and login in (hook["headers"] or {}).values()


def _extra_params(backends: Sequence[Fields]) -> Fields:
    """Return the extra_params of draftloop's connection: an object, or a string that holds one."""
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


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
