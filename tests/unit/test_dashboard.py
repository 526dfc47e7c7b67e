"""The Grafana dashboard asks for metrics that exist, by labels that they have."""

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from draftloop.serving.metrics import Metrics

DASHBOARD = json.loads((Path(__file__).parents[2] / "docs" / "grafana-dashboard.json").read_text("utf-8"))
SELECTOR = re.compile(r"\b((?:draftloop|process)_[a-z_]+)(?:\{([^}]*)\})?")


def samples() -> dict[str, set[str]]:
    """Return every sample's name with its labels, once each metric has been used."""
    metrics = Metrics()
    metrics.drafts.labels("case", "ok").inc()
    metrics.reasons.labels("case", "rule").inc()
    metrics.cascade.labels("case", "kept").inc()
    metrics.model_request_seconds.labels("answered").observe(1)
    labels_by_metric: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.page().decode()):
        for sample in family.samples:
            labels_by_metric.setdefault(sample.name, set()).update(sample.labels)
    return labels_by_metric


def expressions() -> list[str]:
    queries = [variable["query"] for variable in DASHBOARD["templating"]["list"]]
    return [
        *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
        *(query["query"] for query in queries if isinstance(query, dict)),
    ]


def selected() -> list[tuple[str, set[str]]]:
    return [
        (name, set(re.findall(r"(\w+)\s*=?~?=", labels)))
        for expression in expressions()
        for name, labels in SELECTOR.findall(expression)
    ]


def test_every_metric_and_label_of_the_dashboard_exists() -> None:
    there = samples()
    assert selected()
    for name, labels in selected():
        assert name in there, name
        assert labels - {"job"} <= there[name], (name, labels)  # the job is Prometheus' own label


def test_every_metric_of_the_backend_is_on_the_dashboard() -> None:
    base = {re.sub("_(bucket|count|sum|created)$", "", name) for name in samples() if "_created" not in name}
    drawn = {re.sub("_(bucket|count|sum)$", "", name) for name, _ in selected()}
    assert {name for name in base if name.startswith("draftloop_")} <= drawn


def test_names_end_in_their_unit_and_counters_in_total() -> None:
    units = ("_total", "_seconds", "_bytes", "_in_flight", "_tasks")
    for family in text_string_to_metric_families(Metrics().page().decode()):
        if family.name.endswith("_created"):  # the library's own, beside every counter
            continue
        if family.name.startswith("draftloop_") and family.type != "counter":
            assert family.name.endswith(units), family.name
        for sample in family.samples:
            if family.type == "counter" and not sample.name.endswith("_created"):
                assert sample.name.endswith("_total")


def test_panels_do_not_overlap_and_have_their_own_ids() -> None:
    panels: list[Any] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
