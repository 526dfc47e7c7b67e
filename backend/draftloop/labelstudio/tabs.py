"""Saved tabs of Label Studio's data manager: made once, then corrected; what people chose in them stays."""

from functools import partial
from typing import Literal

from label_studio_sdk.types import ViewDataRequestRequest

from draftloop.labelstudio.queries import UNDONE, Filters, Project, where
from draftloop.labelstudio.requests import Connection, Json, holds
from draftloop.runs.run import INPUTS_KEY, NO_RUN, OUTPUTS_KEY, PREVIEW_KEY, SCHEMA_KEY

Outcome = Literal["made", "updated", "already there", "removed"]

REASONS_TAB = "Needs a human"
PASSED_TAB = "Passed the rules"
TABS = ("All tasks", REASONS_TAB, PASSED_TAB)
SENT_BACK_TAB = "Sent back"
NEXT_TAB = "Label next"
# Label Studio hides these in tabs made in its page, and shows them in tabs made by its API; the reasons would
# then stand beyond the edge. Data that is JSON or HTML for a task's page is hidden too. The other columns
# keep the order of the config.
_HIDDEN = [
    f"tasks:{name}"
    for name in (
        *(f"data.{key}" for key in (INPUTS_KEY, PREVIEW_KEY, SCHEMA_KEY, OUTPUTS_KEY, *NO_RUN)),
        *("inner_id", "annotations_results", "annotations_ids", "predictions_model_versions"),
        *("predictions_results", "file_upload", "storage_filename", "created_at", "updated_at", "updated_by"),
        *("avg_lead_time", "allow_skip", "draft_exists"),
    )
]
_HIDDEN_IN_A_TASK = [
    f"tasks:{name}"
    for name in (
        *("id", "completed_at", "cancelled_annotations", "total_predictions", "annotators"),
        "predictions_score",  # else the text has no room beside the open task
    )
]

# So that text and reason are both seen in a window of 1440 pixels.
_HIDDEN_BESIDE_REASONS = ["tasks:completed_at", "tasks:cancelled_annotations", "tasks:annotators"]
_STATUS = "tasks:data.draft_status"
_TEXT_PX = 380  # a sentence or two on the three lines that a tab shows of a task


class Tabs(Connection):
    """The tabs of a project."""

    def keep_tabs(self, project: Project, *, shows_status: bool, text_key: str = "") -> dict[str, Outcome]:
        """Make the saved tabs, or correct their filters; columns and order that people chose stay.

        Args:
            project: The project.
            shows_status: Whether tasks carry `draft_status`, which says why a draft needs a human.
                Without it the tabs filter by score; a draft that broke a rule has score 0.
            text_key: Key of task data that people read, whose column is made wide.
        Returns:
            What happened to each tab, by title.
        """
        known = self._tabs(project)
        outcomes: dict[str, Outcome] = {}
        for title in TABS:
            if title == TABS[0] and known and title not in known:
                continue  # people have made tabs, and so have one that shows everything
            items = _tab_filters(title, shows_status=shows_status)
            outcomes[title] = self._keep_tab(project, known.get(title), title, items, text_key=text_key)
        return outcomes

    def keep_sent_back_tab(self, project: Project, words: str) -> Outcome:
        """Make or correct the saved tab of tasks whose status contains these words."""
        items = [where("data.draft_status", "contains", "String", words)]
        return self._keep_tab(project, self._tabs(project).get(SENT_BACK_TAB), SENT_BACK_TAB, items)

    def keep_next_tab(self, project: Project) -> Outcome:
        """Make or correct the saved tab of tasks that have a `label_next`, in its order.

        Tasks that are submitted or skipped leave it by themselves.
        """
        items = [where("data.label_next", "empty", "String", "false"), *UNDONE]
        view = self._tabs(project).get(NEXT_TAB)
        return self._keep_tab(project, view, NEXT_TAB, items, order="tasks:data.label_next")

    def _tabs(self, project: Project) -> dict[str, Json]:
        views = self._get("tabs", "api/dm/views/", {"project": project.id})
        return {view["data"].get("title"): view for view in views}

    def _keep_tab(
        self,
        project: Project,
        view: Json,
        title: str,
        items: Filters,
        *,
        order: str = "",
        text_key: str = "",
    ) -> Outcome:
        """Make or correct a tab; its order is corrected too where one is named."""
        wanted: dict[str, Json] = {"filters": {"conjunction": "and", "items": list(items)}}
        wanted |= {"ordering": [order]} if order else {}
        if view is not None and holds(view["data"], wanted):
            return "already there"
        ordering = ["tasks:predictions_score"] if items else []
        columns = [_STATUS, *([f"tasks:data.{text_key}"] if text_key else [])]
        # Beside an open task the reason stands above it; tasks that passed have none.
        also = {PASSED_TAB: [_STATUS], REASONS_TAB: _HIDDEN_BESIDE_REASONS}.get(title, [])
        hidden = {
            "explore": [*_HIDDEN, *also],
            "labeling": [*_HIDDEN, *_HIDDEN_IN_A_TASK, _STATUS],
        }
        fresh = {
            "title": title,
            "type": "list",
            "target": "tasks",
            "ordering": ordering,
            "hiddenColumns": hidden,
            "columnsWidth": dict.fromkeys(columns, _TEXT_PX),
        }
        data = ViewDataRequestRequest(**{**(view["data"] if view else fresh), **wanted})
        tab = {"project": project.id, "data": data}
        if view is None:
            self._ask(f"tab '{title}'", partial(self._sdk.views.create, **tab), creates=True)
            return "made"
        self._ask(f"tab '{title}'", partial(self._sdk.views.update, str(view["id"]), **tab))
        return "updated"


def _tab_filters(title: str, *, shows_status: bool) -> list[dict[str, Json]]:
    drafted = where("total_predictions", "greater", "Number", 0)
    if title == REASONS_TAB:
        if shows_status:
            return [where("data.draft_status", "empty", "String", "false")]
        return [where("predictions_score", "in", "Number", {"min": 0, "max": 0})]
    if title == PASSED_TAB:
        if shows_status:
            return [where("data.draft_status", "empty", "String", "true"), drafted]
        return [where("predictions_score", "greater", "Number", 0)]
    return []
