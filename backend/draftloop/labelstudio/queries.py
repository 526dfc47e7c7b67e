"""What a listing of Label Studio's tasks is asked for: filters, fields, and the project.

Knows the names of its data manager's columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from draftloop.labelstudio.requests import Fields, Json

Filters = Sequence[Fields]


@dataclass(frozen=True)
class Project:
    """A project of Label Studio. `extra_params` is what the connection to its backend says besides.

    annotations  how many were submitted
    predictions  how many there are, of all versions
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
        """Name of the case that the connection says, if any."""
        said = self.extra_params.get("case")
        return said if isinstance(said, str) else None


def where(column: str, operator: str, kind: str, value: Json) -> dict[str, Json]:
    """Give a filter of a listing, in Label Studio's names for columns, operators and types."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def undrafted(version: str) -> dict[str, Json]:
    """Give the filter for tasks without a prediction of this version."""
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
# What is not named is not looked up: drafts, for one, take a query for each task. Expanded, annotations take
# a third of the time, and their names are dotted; where Label Studio does not expand them, plain names count
# for tasks and annotations alike.
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
