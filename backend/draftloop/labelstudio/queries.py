"""Parameters of a listing of Label Studio's tasks: filters, fields, and the project.

Knows the names of its data manager's columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from draftloop.labelstudio.requests import Fields, Json

Filters = Sequence[Fields]


@dataclass(frozen=True)
class Project:
    """A project of Label Studio. `extra_params` are those of its connection to the backend.

    annotations  number of submitted ones
    predictions  number of predictions, of all versions
    """

    id: int
    title: str
    created_at: str
    label_config: str
    model_version: str
    extra_params: Fields = field(default_factory=dict)
    annotations: int = 0
    predictions: int = 0

    @property
    def case(self) -> str | None:
        """Name of the case in the extra params, if any."""
        case = self.extra_params.get("case")
        return case if isinstance(case, str) else None


def where(column: str, operator: str, kind: str, value: Json) -> dict[str, Json]:
    """Return a filter of a listing, in Label Studio's names for columns, operators and types."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def undrafted(version: str) -> dict[str, Json]:
    """Return the filter for tasks without a prediction of this version."""
    return where("predictions_model_versions", "not_contains", "List", [version])


SUBMITTED = where("total_annotations", "greater", "Number", 0)
NOT_SUBMITTED = where("total_annotations", "equal", "Number", 0)
SKIPPED = where("cancelled_annotations", "greater", "Number", 0)
UNDONE = (NOT_SUBMITTED, where("cancelled_annotations", "equal", "Number", 0))
UNBEGUN = (
    *UNDONE,
    where("draft_exists", "equal", "Boolean", value=False),  # of any user
)
BRIEF = {"include": "id,data,created_at,updated_at"}
_OF_ANNOTATIONS = (
    "id", "created_at", "updated_at", "result", "completed_by", "was_cancelled", "ground_truth", "lead_time",
    "parent_prediction",
)  # fmt: skip
# Label Studio does not look up what is not named here; saved drafts, for one, take a query for each task.
# Expanded, annotations take a third of the time, and their names have dots. Where Label Studio does not
# expand them, plain names apply to tasks and to annotations.
WITHOUT_PREDICTIONS = {
    "fields": "all",
    "include": ",".join(
        ("data", "annotations", *_OF_ANNOTATIONS, *(f"annotations.{name}" for name in _OF_ANNOTATIONS))
    ),
    "expand": "annotations",
}
FULL = {
    **WITHOUT_PREDICTIONS,
    "include": f"{WITHOUT_PREDICTIONS['include']},predictions",
    "page_size": 500,  # as long as 1000 without predictions
}
