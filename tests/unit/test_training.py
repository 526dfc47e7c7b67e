"""What is decided before anything is trained: recipe, rows, base model, the run's folder. No torch here."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from draftloop.errors import ServiceError, SetupError
from draftloop.support.environments import MODELS
from draftloop.training import runs
from draftloop.training.base import Base, open_base
from draftloop.training.plot import draw_losses
from draftloop.training.recipe import LINEAR_LAYERS, Recipe, read
from draftloop.training.rows import case_of, gather, open_dataset, open_replay
from draftloop.training.runs import TrainingRun
from scripts.training import EMBEDDED
from tests import datasets
from tests.verbs import run_here

MODEL = MODELS / "tiny-qwen3"
SMALL = Recipe(min_rows=8)


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base(MODEL)


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.corrected(tmp_path_factory.mktemp("rows") / "sentiment", 30, case="sentiment")


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.corrected(tmp_path_factory.mktemp("rows") / "complaints", 20)


# ------------------------------------------------------------------------------------------- the recipe


def test_a_recipe_without_a_file_is_the_usual_one() -> None:
    recipe = read(None)
    assert (recipe.r, recipe.alpha, recipe.dropout, recipe.layers) == (8, 32, 0.1, LINEAR_LAYERS)
    assert (recipe.batch_rows, recipe.accumulation, recipe.epochs, recipe.learning_rate) == (4, 4, 3, 1e-4)


def test_yaml_sets_keys_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("epochs: 1\nlearning_rate: 1e-3\nlayers: [q_proj, v_proj]\n")  # 1e-3 is text in YAML 1.1
    recipe = read(file, ["epochs=2", "seed = 7"])
    assert (recipe.epochs, recipe.learning_rate, recipe.seed) == (2, 1e-3, 7)
    assert recipe.layers == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lerning_rate: 1", "there is no key 'lerning_rate'"),
        ("r: many", "r: .*integer"),
        ("dropout: 1.5", "dropout: .*less than 1"),
        ("schedule: none", "schedule: .*'linear', 'cosine' or 'constant'"),
        ("[1, 2]", "is no list of settings"),
        ("r: [", "cannot be read"),
        ("r: 32", r"r is 32, but vLLM is told to take ranks up to 16.*--max-lora-rank"),
    ],
)
def test_errors_in_a_recipe_name_the_key(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(content)
    with pytest.raises(SetupError, match=words):
        read(file)


def test_a_recipe_that_is_not_there_or_a_change_without_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be read"):
        read(tmp_path / "none.yaml")
    with pytest.raises(SetupError, match="sets nothing"):
        read(None, ["epochs"])


def test_a_higher_rank_is_taken_where_vllm_takes_it() -> None:
    assert read(None, ["r=32", "max_lora_rank=64"]).r == 32


def test_the_embedded_models_recipe_changes_only_the_learning() -> None:
    recipe, usual = read(EMBEDDED), read(None)
    changed = {key for key, value in recipe if value != getattr(usual, key)}
    assert {"epochs", "learning_rate"} <= changed
    assert not changed & {"alpha", "layers", "batch_rows", "accumulation", "seed"}
    assert recipe.r <= recipe.max_lora_rank == usual.max_lora_rank  # as vLLM is started with


# ------------------------------------------------------------------------------------------- the rows


def text(base: Base, ids: Any) -> str:
    return str(base.tokens._tokenizer.decode(list(ids), skip_special_tokens=False))


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]


def test_the_loss_covers_the_answer_and_its_end_and_the_prompt_is_as_served(
    base: Base, sentiment: Path
) -> None:
    corpus = gather(open_dataset(sentiment), (), base, SMALL, dpo=True)
    written = lines(sentiment, "messages.jsonl")
    assert len(corpus.rows) == corpus.own == len(written) == 27
    for row, line in zip(corpus.rows, written, strict=True):
        assert text(base, row.ids[row.start : row.end]) == f"{line['messages'][-1]['content']}<|im_end|>"
        assert text(base, row.ids[: row.start]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert text(base, row.ids[row.end :]) == "\n"
    held_out = [line["messages"][-1]["content"] for line in lines(sentiment, "messages.test.jsonl")]
    answers = [text(base, row.ids[row.start : row.end]) for row in corpus.tests]
    assert answers == [f"{answer}<|im_end|>" for answer in held_out]
    wanted = lines(sentiment, "trl-dpo.jsonl")
    assert len(corpus.pairs) == len(wanted) > 8
    for pair, line in zip(corpus.pairs, wanted, strict=True):
        assert text(base, pair.chosen) == f"{line['chosen'][0]['content']}<|im_end|>"
        assert text(base, pair.rejected) == f"{line['rejected'][0]['content']}<|im_end|>"
        assert text(base, pair.prompt).endswith("</think>\n\n")


def test_code_is_trained_as_it_is_asked_for_without_the_programs_before_it(
    base: Base, tmp_path: Path
) -> None:
    folder = datasets.write(tmp_path / "dataset", code=True)
    corpus = gather(open_dataset(folder), (), base, SMALL, dpo=False)
    for row, line in zip(corpus.rows, lines(folder, "messages.jsonl"), strict=True):
        first, second, *programs, last = line["messages"]
        assert programs
        prompt = "".join(
            f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in (first, second)
        )
        assert text(base, row.ids[: row.start]) == f"{prompt}<|im_start|>assistant\n<think>\n\n</think>\n\n"
        assert text(base, row.ids[row.start : row.end]) == f"{last['content']}<|im_end|>"


@pytest.mark.parametrize("files", ["zstd", "parquet"])
@pytest.mark.parametrize("code", [False, True], ids=["text", "code"])
def test_every_kind_of_files_gives_the_same_rows(base: Base, tmp_path: Path, code: bool, files: str) -> None:
    recipe = Recipe(min_rows=1)
    first, second = (
        gather(
            open_dataset(datasets.write(tmp_path / kind, code=code, files=kind)), (), base, recipe, dpo=True
        )
        for kind in ("jsonl", files)
    )
    assert first.rows == second.rows
    assert first.pairs == second.pairs


def test_rows_that_are_too_long_are_named_and_never_cut(base: Base, complaints: Path) -> None:
    whole = gather(open_dataset(complaints), (), base, SMALL, dpo=False)
    limit = sorted(len(row.ids) for row in whole.rows)[-3] - 1  # at least three are longer
    recipe = Recipe(min_rows=1, max_tokens=limit)
    corpus = gather(open_dataset(complaints), (), base, recipe, dpo=False)
    kept = [row for row in whole.rows if len(row.ids) <= limit]
    assert list(corpus.rows) == kept
    counts = corpus.counts()
    assert counts["too_long"] == len(whole.rows) - len(kept) >= 3
    for entry in counts["too_long_rows"]:
        assert entry["tokens"] == len(whole.rows[entry["line"] - 1].ids)
        assert entry["file"] == str(complaints / "messages.jsonl")


def test_replayed_rows_come_by_their_share_and_the_same_ones_again(
    base: Base, sentiment: Path, complaints: Path
) -> None:
    own = open_dataset(sentiment)

    def replayed(words: str, seed: int = 0) -> list[Any]:
        recipe = Recipe(min_rows=8, seed=seed)
        corpus = gather(own, [open_replay(words)], base, recipe, dpo=False)
        assert corpus.own == 27
        return list(corpus.rows[corpus.own :])

    everything = replayed(f"{complaints}")
    assert len(everything) == 18  # all that there are
    third = replayed(f"{complaints}:0.333")
    assert len(third) == 9
    assert third == replayed(f"{complaints}:0.333") != replayed(f"{complaints}:0.333", seed=1)
    assert all(row in everything for row in third)


@pytest.mark.parametrize("share", ["0", "-1", "much", "1e9"])
def test_a_share_that_is_none_is_refused(complaints: Path, share: str) -> None:
    with pytest.raises(SetupError, match="is no share"):
        open_replay(f"{complaints}:{share}")


def test_a_question_that_a_replayed_dataset_holds_out_is_not_trained(base: Base, tmp_path: Path) -> None:
    samples = list(datasets.corrections("sentiment", 30))
    mine = datasets.store(tmp_path / "mine", samples)
    other = datasets.store(tmp_path / "other", [sample for sample in samples if sample.split == "test"])
    # The other one trains what is held out here, and nothing else.
    manifest = json.loads((other / "manifest.json").read_bytes())
    (other / "messages.jsonl").write_bytes((other / "messages.test.jsonl").read_bytes())
    manifest["files"]["messages.jsonl"] = manifest["files"]["messages.test.jsonl"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    corpus = gather(open_dataset(mine), [open_replay(str(other))], base, SMALL, dpo=False)
    assert corpus.own == len(corpus.rows) == 27
    assert corpus.counts()["held_out"] == 3


# ------------------------------------------------------------------------------------------- refusals


def test_a_folder_without_a_manifest_or_with_other_files_is_no_dataset(
    complaints: Path, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match=r"has no manifest\.json"):
        open_dataset(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(complaints, folder)
    open_dataset(folder)
    with (folder / "messages.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(SetupError, match=r"messages\.jsonl is not the file that the manifest names"):
        open_dataset(folder)
    (folder / "messages.jsonl").unlink()
    with pytest.raises(SetupError, match=r"messages\.jsonl is not the file"):
        open_dataset(folder)


def test_too_few_rows_or_pairs_are_refused_with_their_number(base: Base, complaints: Path) -> None:
    own = open_dataset(complaints)
    with pytest.raises(SetupError, match="18 rows to train on; 32 are needed"):
        gather(own, (), base, Recipe(), dpo=False)
    with pytest.raises(SetupError, match=r"0 rows to train on \(18 are too long\); 8 are needed"):
        gather(own, (), base, Recipe(min_rows=8, max_tokens=16), dpo=False)
    pairs = len(lines(complaints, "trl-dpo.jsonl"))
    with pytest.raises(SetupError, match=f"{pairs} pairs of a draft and its correction"):
        gather(own, (), base, Recipe(min_rows=18), dpo=True)


def test_a_dataset_without_the_format_is_an_error_with_a_hint(base: Base, tmp_path: Path) -> None:
    folder = datasets.corrected(tmp_path / "dataset", 10)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["options"]["formats"] = ["alpaca", "messages"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SetupError, match="--format alpaca --format messages --format trl-dpo"):
        gather(open_dataset(folder), (), base, Recipe(min_rows=1), dpo=True)


def test_an_adapter_is_for_one_case(complaints: Path) -> None:
    own = open_dataset(complaints)
    assert case_of(own, "") == case_of(own, "complaint") == "complaint"
    with pytest.raises(SetupError, match="holds samples of: complaint"):
        case_of(own, "sentiment")


def test_more_tokens_than_the_model_was_made_for_are_refused(base: Base, complaints: Path) -> None:
    with pytest.raises(SetupError, match="made for 2048 tokens"):
        gather(open_dataset(complaints), (), base, Recipe(max_tokens=4096), dpo=False)


def model_with(tmp_path: Path, template: str = "", **generation: Any) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in MODEL.iterdir():
        (folder / file.name).symlink_to(file)
    changed: Mapping[str, str] = {
        "chat_template.jinja": template or (MODEL / "chat_template.jinja").read_text(encoding="utf-8"),
        "generation_config.json": json.dumps(generation or {"eos_token_id": 4545}),
    }
    for name, content in changed.items():
        (folder / name).unlink()
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def test_a_base_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no base model in"):
        open_base(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SetupError, match="no base model in"):
        open_base(tmp_path)


def test_a_model_that_would_not_learn_to_stop_is_refused(tmp_path: Path, complaints: Path) -> None:
    other = open_base(model_with(tmp_path, eos_token_id=[1, 2]))
    with pytest.raises(SetupError, match="would never learn to stop"):
        gather(open_dataset(complaints), (), other, SMALL, dpo=False)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{{ messages | length }}{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}",
            "the first of them: The chat template writes the question otherwise once it is answered",
        ),
        (
            "{% for one in messages %}:{{ one.content[:9] }}{% endfor %}{{ ':' * add_generation_prompt }}",
            "the first of them: The chat template does not write the answer as it is",
        ),
        ("{{ raise_exception('no system message') }}", "refuses the conversation: no system message"),
        ("{{ messages[9].content }}", "refuses the conversation: list object has no element 9"),
    ],
)
def test_a_template_that_writes_no_row_as_it_is_leaves_none_to_train(
    tmp_path: Path, complaints: Path, template: str, reason: str
) -> None:
    other = open_base(model_with(tmp_path, template))
    with pytest.raises(SetupError, match=r"0 rows to train on \(18 cannot be written by") as raised:
        gather(open_dataset(complaints), (), other, SMALL, dpo=False)
    assert reason in raised.value.message


THOUGHT = "<think>\n\n</think>\n\n"
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)


def test_a_template_for_trainers_that_leaves_out_the_empty_thought_trains_the_same_rows(
    base: Base, tmp_path: Path, complaints: Path
) -> None:
    other = open_base(model_with(tmp_path, TURNS))
    assert THOUGHT in (MODEL / "chat_template.jinja").read_text(encoding="utf-8").replace("\\n", "\n")
    theirs = gather(open_dataset(complaints), (), other, SMALL, dpo=False)
    ours = gather(open_dataset(complaints), (), base, SMALL, dpo=False)
    assert theirs.rows == ours.rows
    assert len(ours.rows) == 18


@pytest.mark.parametrize(
    ("place", "text", "reason"),
    [
        (-1, '{"name":"use </think> here"}', "It holds </think>."),
        (-1, '{"name":"a<|im_end|>b"}', "It holds <|im_end|>."),
        (1, "<tool_response>x</tool_response>", "It holds <tool_response>, </tool_response>."),
        (0, "Say <think>", "It holds <think>."),
    ],
)
def test_a_row_with_control_tokens_is_left_out_and_named_and_the_others_are_trained(
    base: Base, tmp_path: Path, complaints: Path, place: int, text: str, reason: str
) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(complaints, folder)
    rows = lines(folder, "messages.jsonl")
    rows[2]["messages"][place]["content"] = text
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (folder / "messages.jsonl").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["messages.jsonl"] = {
        **manifest["files"]["messages.jsonl"],
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    counts = gather(open_dataset(folder), (), base, SMALL, dpo=False).counts()
    assert (counts["own"], counts["not_rendered"]) == (17, 1)
    assert counts["not_rendered_rows"] == [
        {"file": str(folder / "messages.jsonl"), "line": 3, "reason": reason}
    ]


def test_a_models_hash_changes_only_with_its_files(base: Base, tmp_path: Path) -> None:
    folder = model_with(tmp_path, eos_token_id=4545)
    first = open_base(folder).sha256()
    (folder / "README.md").unlink()
    assert open_base(folder).sha256() == first
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4545]}))
    assert open_base(folder).sha256() != first


def test_the_verb_reports_errors_in_a_sentence(tmp_path: Path, sentiment: Path) -> None:
    for dataset, options, words in (
        (tmp_path, (), "is no dataset: it has no manifest.json"),
        (sentiment, ("--base", tmp_path), "There is no base model in"),
        (sentiment, ("--set", "r=64"), "vLLM is told to take ranks up to 16"),
        (sentiment, (), "27 rows to train on; 32 are needed. Correct more tasks and sync again"),
    ):
        code, _, output = run_here({}, "train", "--dataset", dataset, "--out", tmp_path / "run", *options)
        assert code == 1
        assert words in output
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- the folder

PLAN = {"epochs": 1, "dataset": "a"}


def adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (folder / name).write_text(name)
    return folder


def finish(run: TrainingRun) -> dict[str, Any]:
    return run.finish(
        adapter(run.stage("sft") / "adapter"), lambda sha256: {"plan": PLAN, "adapter_sha256": sha256}
    )


def test_a_finished_run_holds_only_adapter_and_record(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path / "run")
    assert not run.check(PLAN, resume=False)
    with run.making(PLAN):
        (run.stage("sft") / "checkpoint-5").mkdir(parents=True)
        record = finish(run)
    assert not run.part.exists()
    files = sorted(str(path.relative_to(run.out)) for path in run.out.rglob("*") if path.is_file())
    assert files == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "run.json"]
    assert run.record == record
    assert run.check(PLAN, resume=False)
    with pytest.raises(SetupError, match="epochs: 1 before, 2 now"):
        run.check({**PLAN, "epochs": 2}, resume=False)


def test_a_begun_run_goes_on_only_where_that_is_wanted_and_with_the_same_plan(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path / "run")
    assert not run.check(PLAN, resume=True)  # nothing is there: it begins
    with run.making(PLAN):
        pass
    assert not run.check(PLAN, resume=True)
    with pytest.raises(SetupError, match="--resume goes on"):
        run.check(PLAN, resume=False)
    with pytest.raises(SetupError, match="dataset: a before, b now"):
        run.check({**PLAN, "dataset": "b"}, resume=True)


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path / "run")
    with run.making(PLAN), pytest.raises(SetupError, match="Another training is writing"), run.making(PLAN):
        raise AssertionError


def test_a_folder_that_is_no_run_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(SetupError, match="is no run"):
        TrainingRun(tmp_path / "run").check(PLAN, resume=True)


def test_a_run_that_was_killed_before_its_renaming_is_put_in_place(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path / "run")
    assert not run.settle()
    with run.making(PLAN):
        finish(run)
    run.out.rename(run.part)
    (run.stage("sft") / "checkpoint-5").mkdir(parents=True)
    runs.write(run.part / "plan.json", PLAN)
    assert run.settle()
    assert not run.part.exists()
    assert sorted(path.name for path in run.out.iterdir()) == ["adapter", "run.json"]


def test_the_last_whole_checkpoint_counts_and_what_was_cut_short_goes(tmp_path: Path) -> None:
    assert runs.last_checkpoint(tmp_path) is None
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (5, 10):
        runs.mark(tmp_path / f"checkpoint-{step}", {"seconds": step})
    assert runs.last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()
    assert runs.marked(tmp_path / "checkpoint-10") == {"seconds": 10}


def test_a_failing_disk_is_a_service_error(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path / "run")
    with run.making(PLAN), pytest.raises(ServiceError, match="cannot be written"):
        run.finish(tmp_path / "nothing", lambda _: {})


# ------------------------------------------------------------------------------------------- the picture


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_the_loss_is_drawn_for_any_number_of_steps(tmp_path: Path, steps: int) -> None:
    losses = [{"stage": "sft", "step": step + 1, "loss": 2 / (step + 1)} for step in range(steps)]
    losses += [{"stage": "dpo", "step": 1, "loss": 0.69}]
    draw_losses(losses, "Loss of run", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        image.load()
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or ()}
    assert {(37, 99, 235), (217, 119, 6)} <= colours  # a curve of each stage
    assert (tmp_path / "loss.png").stat().st_size > 1000


@pytest.mark.parametrize("losses", [[], [{"stage": "sft", "step": 1, "loss": float("nan")}]])
def test_a_run_without_a_finite_loss_is_drawn_and_its_title_is_plain_text(
    tmp_path: Path, losses: list[dict[str, Any]]
) -> None:
    draw_losses(losses, r"Loss of 投诉 $\frac$", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (960, 540)
