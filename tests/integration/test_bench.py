"""The benchmark, small: it measures what it says, on real servers; what comes out is no test's business."""

import tempfile
from pathlib import Path

import pytest

from scripts.benchmarks import circle, engine, examples, memory, plot, sandbox, scores, sync
from tests.conftest import ModelServer, installed

FIGURES = {
    "engine_share_1",
    "engine_share_32",
    "interactive_overhead_ms_p50",
    "prefix_cached_share",
    "prefix_shared_share",
    "vs_one_at_a_time",
    "client_cpu_ms_per_task",
}


@pytest.mark.integration
def test_the_engine_is_measured_and_drawn(vllm: ModelServer, tmp_path: Path) -> None:
    progress: list[str] = []
    url = vllm.url.removesuffix("/v1")
    figures, samples = engine.measure(
        tmp_path, url, 1, progress.append, engine.Sizes({1: 2, 32: 4}, in_turn=2, alone=2, fresh=3)
    )
    assert set(figures) == FIGURES
    assert all(figure > 0 for name, figure in figures.items() if name != "interactive_overhead_ms_p50")
    assert figures["prefix_cached_share"] <= 1
    assert figures["prefix_cached_share"] >= figures["prefix_shared_share"] > 0
    assert len(progress) > 4
    plot.engine(samples, tmp_path / "engine.png")
    assert (tmp_path / "engine.png").read_bytes().startswith(b"\x89PNG")


def test_the_peak_memory_of_prelabel_is_measured(tmp_path: Path) -> None:
    progress: list[str] = []
    figures, _ = memory.measure(tmp_path, {"few": 30}, progress.append)
    assert 20 < figures["prelabel_peak_mb_few"] < 2000


def test_the_sandbox_is_measured_against_subprocesses() -> None:
    progress: list[str] = []
    # Where jobs' users can pass through; pytest's own folder is closed to them.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, installed():
        figures, samples = sandbox.measure(Path(folder), 1, progress.append, sandbox.Sizes(1, 1, 2))
    assert set(figures) == {"warm_start_vs_subprocess", "plot_vs_subprocess", "rerun_vs_subprocess"}
    assert all(figure > 0 for figure in figures.values())
    assert all(len(pairs) == 1 for pairs in samples["seconds_of_one"].values())
    assert len(progress) == 3


@pytest.mark.integration
def test_scores_are_judged_and_drawn(vllm: ModelServer, tmp_path: Path) -> None:
    progress: list[str] = []
    figures, samples = scores.measure(vllm.url.removesuffix("/v1"), vllm.name, 6, progress.append)
    assert {"auroc_complaint", "right_sentiment", "auroc_fields"} <= set(figures)
    assert len(progress) == len(samples["whole"])
    assert all(len(judged) == 6 for judged in samples["whole"].values())
    scores.draw(samples, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.integration
def test_corrections_in_prompts_are_measured_and_drawn(vllm: ModelServer, tmp_path: Path) -> None:
    progress: list[str] = []
    sizes = examples.Sizes(tasks=4, draws=2, ways=[(2, 20)])
    url = vllm.url.removesuffix("/v1")
    figures, samples = examples.measure(tmp_path, url, vllm.name, progress.append, sizes)
    assert set(samples) == {"examples_none", "examples_2_of_20"}
    assert figures["prompt_tokens_examples_2_of_20"] > figures["prompt_tokens_examples_none"] > 0
    assert 0 < figures["cached_share_examples_2_of_20"] < 1
    assert figures["gain_examples_2_of_20_low"] <= figures["gain_examples_2_of_20_high"]
    assert len(progress) == 2
    examples.draw(samples, tmp_path / "examples.png")
    assert (tmp_path / "examples.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.integration
def test_a_sync_is_measured_against_every_other_way_to_read_the_project(tmp_path: Path) -> None:
    progress: list[str] = []
    with installed():
        figures, samples = sync.measure(tmp_path, 110, 1, progress.append, settled_s=0)
    assert set(figures) == {
        *("sync_110_vs_sdk_listing", "sync_110_vs_fastest", "sync_110_peak_mb", "sync_nothing_new_s")
    }
    assert all(figure > 0 for figure in figures.values())
    assert {"pages of 500", "export", "snapshot", "sdk listing", "ours"} <= samples["seconds"].keys()


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    assert scores.auroc([(0.9, True), (0.1, False)]) == 1
    assert scores.auroc([(0.1, True), (0.9, False)]) == 0
    assert scores.auroc([(0.5, True), (0.5, False), (0.4, False)]) == 0.75
    assert scores.bins([(0.5, False), (0.25, False), (1.0, True), (0.5, True)], 2) == [
        (0.375, 0.0, 2),
        (0.75, 1.0, 2),
    ]


def test_corrections_needed_lie_between_the_points_of_a_curve() -> None:
    curve = [(0.0, 0.5), (40.0, 0.6), (80.0, 0.58), (160.0, 0.7)]
    assert circle.needed(curve, 0.4) == 0
    assert circle.needed(curve, 0.55) == pytest.approx(20)
    assert circle.needed(curve, 0.64) == pytest.approx(120)
    assert circle.needed(curve, 0.9) == float("inf")
