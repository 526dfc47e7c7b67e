"""Files that Label Studio itself serves: what annotators see in a task, from its origin, behind its login.

Knows how an upload is made and looked up. Does not know how a request is sent, tried again or
refused: the caller passes the sender of `labelstudio`.

Uploads belong to a project and go with it, so ours have one of their own that holds nothing else. Label
Studio's Community edition lists it among all others, the newest first: it archives and hides none (`is_draft`
and `is_published` change nothing there). So it is grey, says what it is, and is made before the projects that
need it. An upload's name is the SHA-256 of its content: an upload that exists is looked up by it, without a
ledger.

Source:
    Label Studio 1.23.2, data_import: uploader.py, models.py and api.py; projects/api.py for the list.
"""

import json
import re
import threading
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from draftloop.errors import DraftloopError, ServiceError, TaskError
from draftloop.execution.file_kinds import MEDIA_TYPES, Kind

TITLE = "draftloop: do not delete, files of code runs"  # at most 50 characters; 40 are seen in the list
_TITLES = (TITLE, "draftloop: files of code runs, do not delete")  # the second one by earlier versions
_EARLIER_WORDS = (
    "Charts and files that tasks of other projects show. Deleting this project empties them there."
)
_LOOK = {
    "description": "Nothing to label here. It holds charts and files that tasks of other projects show: "
    "without it they are empty there.",
    "color": "#7A7A7A",
}
# In capitals, Label Studio stores a file as it is; `.json` and the like it would read as lists of tasks.
_ENDINGS: dict[Kind, str] = {
    "png": "png",
    "jpeg": "jpg",
    "svg": "svg",
    "pdf": "pdf",
    "html": "HTML",
    "scripted": "HTML",  # shown without its script: Label Studio serves uploads in a sandbox
    "csv": "CSV",
    "json": "JSON",
    "text": "TXT",
}
_UPLOADED = re.compile(r"[0-9a-f]{8}-([0-9a-f]{64}\.\w+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Send(Protocol):
    """Sends a request to Label Studio and returns its answer's JSON; `LabelStudio.send`."""

    def __call__(
        self,
        what: str,
        method: str,
        path: str,
        body: bytes = b"",
        params: dict[str, Any] | None = None,
        *,
        content_type: str = "application/json",
    ) -> Any:
        """Send it."""
        ...


class Uploads:
    """Uploads of one Label Studio. Safe to call from several threads."""

    def __init__(self, send: Send, url: str) -> None:
        """Prepare; nothing is sent yet.

        Args:
            send: Sends a request.
            url: Address of Label Studio; a path in it is where browsers find it below their host.
        """
        self._send = send
        self._prefix = urlsplit(url).path.rstrip("/")
        self._lock = threading.Lock()
        self._project = 0
        self._known: dict[str, str] | None = None  # address by name

    def upload(self, sha256: str, kind: Kind, content: bytes) -> str:
        """Upload a file, unless Label Studio has it; return its address.

        Args:
            sha256: SHA-256 of the content.
            kind: What it is shown as.
            content: All of it.
        Returns:
            Its address on Label Studio's own origin: `/data/upload/...`.
        Raises:
            TaskError: Label Studio does not serve files of this kind.
            SetupError: Label Studio refuses it, or the token may not do this.
            ServiceError: Label Studio stays away.
        """
        if kind not in _ENDINGS or not _SHA256.fullmatch(sha256):
            raise TaskError(f"Label Studio shows no file of kind {kind!r}.", hint="Link to it instead.")
        name = f"{sha256}.{_ENDINGS[kind]}"
        known = self._known
        if known is not None and name in known:
            return known[name]  # without waiting for another's upload
        with self._lock:
            try:
                if self._known is None:
                    self._known = self._list_uploads()
                if name not in self._known:
                    self._known[name] = self._upload(name, kind, content)
                return self._known[name]
            except DraftloopError:
                # It may have arrived, or somebody has deleted the project: the next call reads anew.
                self._known = None
                raise

    def prepare(self) -> int:
        """Return the id of the project that holds uploads; make it where there is none.

        Raises:
            SetupError: Label Studio refuses it, or the token may not do this.
            ServiceError: Label Studio stays away.
        """
        with self._lock:
            self._known = self._list_uploads()
            return self._project

    def _upload(self, name: str, kind: Kind, content: bytes) -> str:
        boundary = name[:64]  # no content holds its own hash
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            f"Content-Type: {MEDIA_TYPES[kind]}\r\n\r\n"
        )
        answer = self._send(
            "an upload",
            "POST",
            f"api/projects/{self._project}/import",
            b"%b%b\r\n--%b--\r\n" % (head.encode(), content, boundary.encode()),
            {"commit_to_project": "false"},
            content_type=f"multipart/form-data; boundary={boundary}",
        )
        ids = answer.get("file_upload_ids") or []
        if len(ids) != 1:
            raise ServiceError("Label Studio did not say where it put an upload.")
        upload = self._send("an upload", "GET", f"api/import/file-upload/{ids[0]}")
        return self._address(upload["file"])

    def _list_uploads(self) -> dict[str, str]:
        """List addresses of uploads by name, the first of equal ones; make a missing project."""
        projects = self._projects()
        if not projects:
            body = json.dumps({"title": TITLE, "label_config": "<View/>", **_LOOK})
            self._send("a project for files of runs", "POST", "api/projects/", body.encode())
            projects = self._projects()  # another process may have made it at the same time
        self._project = min(projects)
        if projects[self._project] == _EARLIER_WORDS:  # what people wrote there stays
            body = json.dumps(_LOOK)
            self._send(
                "a project for files of runs", "PATCH", f"api/projects/{self._project}/", body.encode()
            )
        path = f"api/projects/{self._project}/file-uploads"
        uploads = self._send("the uploads", "GET", path, params={"all": "true"})
        return {
            match[1]: self._address(upload["file"])
            for upload in sorted(uploads, key=lambda upload: -upload["id"])
            if (match := _UPLOADED.fullmatch(upload["file"].rpartition("/")[2]))
        }

    def _projects(self) -> dict[int, str]:
        """Return the description of each project for files of runs, by number."""
        descriptions = {}
        for title in _TITLES:
            params = {"title": title, "page_size": 100, "include": "id,title,description"}
            listed = self._send("the list of projects", "GET", "api/projects/", params=params)
            for project in listed["results"]:
                if project["title"] == title:
                    descriptions[int(project["id"])] = project.get("description") or ""
        return descriptions

    def _address(self, file: str) -> str:
        return f"{self._prefix}/data/{quote(file)}"
