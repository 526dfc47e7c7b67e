"""The learning curve, small: what comes out is no test's business."""

from pathlib import Path

from scripts.benchmarks import circle
from tests.conftest import ModelServer, installed

SMALL = circle.Sizes(corrections=(32,), seeds=(0,), pool=40, held_out=6, epochs=1)


def test_the_curve_is_measured_kept_and_drawn(vllm: ModelServer, tmp_path: Path) -> None:
    url, messages = vllm.url.removesuffix("/v1"), list[str]()
    with installed():
        first = circle.measure(tmp_path, url, vllm.name, messages.append, SMALL)
    figures, samples = first
    assert {"circle_base", "circle_next_32", "circle_random_32", "circle_accuracy"} <= set(figures)
    assert len(messages) == 3
    assert [point["order"] for point in samples["points"]] == ["next", "random"]
    assert all(0 <= point["wrong_fields"] <= 1 for point in samples["points"])
    # Nothing is done again, so no server is asked.
    assert circle.measure(tmp_path, "http://127.0.0.1:9", vllm.name, messages.append, SMALL) == first
    circle.draw(samples, tmp_path / "circle.png")
    assert (tmp_path / "circle.png").read_bytes().startswith(b"\x89PNG")
