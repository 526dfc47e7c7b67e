"""The base class: a model is made for each call, reads the config at once, and keeps values by project."""

from typing import Any
from xml.etree import ElementTree as ET

_KEPT: dict[tuple[str, str], str] = {}


class LabelStudioMLBase:
    """What a model class is derived from."""

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            ET.fromstring(label_config)
            self.set("label_config", label_config)
        if not self.get("model_version"):
            self.set("model_version", "0.0.1")

    @property
    def label_config(self) -> str | None:
        return self.get("label_config")

    def get(self, key: str) -> str | None:
        return _KEPT.get((self.project_id, key))

    def set(self, key: str, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError("Value must be a string")
        _KEPT[self.project_id, key] = value

    def predict(self, tasks: list[dict[str, Any]], context: Any = None, **_: Any) -> Any:
        return []

    def fit(self, event: str, data: Any, **_: Any) -> Any:
        return None
