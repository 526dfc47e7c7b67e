"""Corrections in prompts: frozen, never what is held out or the task's own, the same for the same task."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.app import make_examples
from draftloop.cli.servers import PYTHONPATH
from draftloop.dataset.folder import lines_of
from draftloop.dataset.gates import group_of
from draftloop.dataset.sample import Sample
from draftloop.drafting.cache import SqliteCache
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.drafts import Draft
from draftloop.drafting.escalation import Larger
from draftloop.drafting.examples import Snapshot, freeze
from draftloop.drafting.versions import AskOptions
from draftloop.errors import ServiceError, SetupError, TaskError
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import (
    Case,
    Completion,
    Message,
    Profile,
    Prompt,
    Refinement,
    Shown,
    generic_case,
    preamble,
)
from draftloop.settings import StoreSettings
from draftloop.support.environments import ROOT
from tests.datasets import corrected, corrections, store
from tests.fake_vllm import Body, FakeVllm, fake_vllm
from tests.families import FAMILIES
from tests.verbs import run_here

CASES = Cases(ROOT / "label_config")
CASE = CASES.get("complaint")
FLIGHT = CASES.get("flight_booking")
TEXTS = [
    "我叫何平,住中山北路88号。电梯坏了三天!",
    "我叫林雨,住中山北路12号。电梯又坏了!",
    "快递员把包裹扔在门口,淋湿了。我叫张三。",
    "The lift in our house has been broken for days.",
]
NEW = "我叫王五,住中山北路90号。电梯坏了五天!"
ABOUT = {"path": "/dataset", "manifest_sha256": "0" * 64, "group_by": ""}


def sample(number: int, text: str, *, case: Case = CASE, **more: Any) -> Sample:
    value = {"question": text[-6:]} if case is CASE else {"intent": "book"}
    fields = {
        "group": group_of({"text": text}),
        "split": "train",
        "metadata": {"config_hash": case.labelling.config_hash, "updated_at": f"2026-01-{number:02d}"},
    }
    return Sample(
        project=1,
        task=number,
        annotation=number,
        case=case.name,
        verdict="written",
        input={"text": text},
        system=case.compact,
        instruction=text,
        value=value,
        target=case.labelling.encode(value),
        **{**fields, **more},
    )


SAMPLES = [sample(number, text) for number, text in enumerate(TEXTS, start=1)]


def snapshot(folder: Path, samples: Sequence[Sample] = SAMPLES, *, shown: int = 3, **about: str) -> Snapshot:
    folder.mkdir(exist_ok=True)
    return Snapshot(freeze(folder, samples, [{**ABOUT, **about}]).folder, shown=shown)


def chosen(examples: Snapshot, text: str = NEW, case: Case = CASE) -> list[str]:
    return [shown.question for shown in examples.find(case, case.labelling.read(Task(1, {"text": text})))]


# ---------------------------------------------------------------------------------- what is chosen


def test_the_most_alike_comes_last_in_either_language(tmp_path: Path) -> None:
    examples = snapshot(tmp_path)
    assert chosen(examples)[-1] == TEXTS[0]
    assert set(chosen(examples)[:-1]) <= set(TEXTS[1:])
    assert chosen(examples, "A broken lift!")[-1] == TEXTS[3]
    assert chosen(examples, "ＡＢＲＯＫＥＮ  ＬＩＦＴ") == chosen(examples, "abroken lift")
    assert chosen(examples, "ж") == []
    assert chosen(snapshot(tmp_path, shown=1)) == [TEXTS[0]]


_SMALL = st.text("电梯坏了ab ", min_size=1, max_size=6)


@given(
    st.lists(st.tuples(_SMALL, st.sampled_from(["train", "train", "test"]), _SMALL), min_size=1, max_size=12),
    _SMALL,
    _SMALL,
    st.integers(1, 4),
)
def test_nothing_that_is_held_out_and_nothing_of_the_task_itself_is_shown(
    drawn: list[tuple[str, Any, str]], text: str, document: str, count: int
) -> None:
    samples = [
        sample(number, text, split=split, group=group_of({"document": of}))
        for number, (text, split, of) in enumerate(drawn, start=1)
    ]
    held = {entry.instruction for entry in samples if entry.split == "test"}
    documents = {group_of({"document": of}) for _, split, of in drawn if split == "test"}
    task = Task(1, {"text": text, "document": document})
    allowed = {
        entry.instruction
        for entry in samples
        if entry.split == "train"
        and entry.instruction not in held | {text}
        and entry.group not in documents | {group_of({"document": document})}
    }
    with TemporaryDirectory() as folder:
        try:
            examples = snapshot(Path(folder), samples, shown=count, group_by="document")
        except SetupError:
            assert {entry.instruction for entry in samples if entry.split == "train"} <= held | {
                entry.instruction for entry in samples if entry.group in documents
            }
            return
        shown = examples.find(CASE, CASE.labelling.read(task))
        again = Snapshot(next(Path(folder).iterdir()), shown=count).find(CASE, CASE.labelling.read(task))
    assert {entry.question for entry in shown} <= allowed
    assert len(shown) <= count
    assert len({entry.question for entry in shown}) == len(shown)
    assert shown == again


def test_another_process_finds_the_same(tmp_path: Path) -> None:
    samples = [sample(1 + number % 28, f"{number % 3} {number} 电梯坏了") for number in range(60)]
    examples = snapshot(tmp_path, [replace(entry, annotation=at) for at, entry in enumerate(samples)])
    code = (
        "import sys; from pathlib import Path; from draftloop.drafting.examples import Snapshot;"
        "from draftloop.prompting.cases import Cases; from draftloop.labelling.labelling import Task;"
        "case = Cases(Path('label_config')).get('complaint');"
        "question = case.labelling.read(Task(1, {'text': '电梯坏了 2'}));"
        "print(*Snapshot(Path(sys.argv[1]), shown=9).find(case, question), sep='\\n')"
    )
    (folder,) = tmp_path.iterdir()
    printed = subprocess.run(
        [sys.executable, "-c", code, folder],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "PYTHONHASHSEED": "7"},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    text = "电梯坏了 2"
    here = Snapshot(folder, shown=9).find(CASE, CASE.labelling.read(Task(1, {"text": text})))
    assert printed.splitlines() == [str(shown) for shown in here]
    assert len(chosen(examples, text)) == 3


def test_examples_of_another_case_another_config_or_another_schema_are_not_shown(tmp_path: Path) -> None:
    old = sample(9, TEXTS[0] + "!", metadata={"config_hash": "an older one"})
    other = replace(sample(8, TEXTS[0] + "?"), target='{"question":"其他"}')
    examples = snapshot(tmp_path, [*SAMPLES[1:], old, other, sample(7, TEXTS[0], case=FLIGHT)])
    assert chosen(examples)
    assert set(chosen(examples)) <= set(TEXTS[1:])
    assert chosen(examples, NEW, FLIGHT) == [TEXTS[0]]
    assert chosen(examples, NEW, CASES.get("sentiment")) == []
    assert examples.manifest(CASES.get("sentiment")) == {}


def test_a_masked_text_is_shown_masked_and_still_is_not_shown_to_its_own_task(tmp_path: Path) -> None:
    masked = replace(SAMPLES[0], instruction=TEXTS[0].replace("何平", "张某"))
    examples = snapshot(tmp_path, [masked, *SAMPLES[1:]])
    assert chosen(examples)[-1] == masked.instruction
    assert masked.instruction not in chosen(examples, TEXTS[0])


# ---------------------------------------------------------------------------------- what is frozen


def test_the_same_samples_are_frozen_once_and_others_beside_them(tmp_path: Path) -> None:
    first = freeze(tmp_path, SAMPLES, [ABOUT])
    again = freeze(tmp_path, reversed(SAMPLES), [{**ABOUT, "path": "/copy"}])
    assert (first.new, again.new, again.folder) == (True, False, first.folder)
    before = (first.folder / "manifest.json").read_bytes()
    held = sample(5, "这是留出的", split="test")
    assert not freeze(tmp_path, [*SAMPLES, held], [ABOUT]).new
    more = freeze(tmp_path, [*SAMPLES, sample(6, "停水了")], [ABOUT])
    assert more.new
    assert more.folder != first.folder
    assert (first.folder / "manifest.json").read_bytes() == before
    manifest = json.loads(before)
    assert manifest["datasets"] == [ABOUT]
    assert (manifest["cases"][0]["case"], manifest["cases"][0]["rows"]) == ("complaint", 4)
    assert first.folder.name == manifest["sha256"][:12]


def test_the_newest_of_a_case_stay(tmp_path: Path) -> None:
    written = freeze(tmp_path, [*SAMPLES, sample(3, "机票", case=FLIGHT)], [ABOUT], most=2)
    rows = [json.loads(line) for line in (written.folder / "examples.jsonl").read_bytes().splitlines()]
    assert [row["question"] for row in rows] == [*TEXTS[2:], "机票"]


def test_what_one_dataset_holds_out_comes_in_from_no_other(tmp_path: Path) -> None:
    held = replace(SAMPLES[0], project=2, split="test")
    assert TEXTS[0] not in chosen(snapshot(tmp_path, [*SAMPLES, held]))
    with pytest.raises(SetupError, match="no sample for training"):
        freeze(tmp_path, [SAMPLES[0], held], [ABOUT])


def frozen_where_files_hold_200_bytes(folder: Path, *, dies: bool) -> int:
    """Freeze in a process whose files end soon: by its death, or by an error; give its status."""
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if dies else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
            freeze(folder, SAMPLES, [ABOUT])
        except ServiceError as error:
            os._exit(7 if "cannot be written: File too large" in str(error) else 8)
        finally:
            os._exit(9)
    return os.waitpid(child, 0)[1]


def test_killed_while_it_writes_it_leaves_no_half_of_a_snapshot(tmp_path: Path) -> None:
    assert os.WTERMSIG(frozen_where_files_hold_200_bytes(tmp_path, dies=True)) == signal.SIGXFSZ
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".part")
    written = freeze(tmp_path, SAMPLES, [ABOUT])
    assert written.new
    assert list(tmp_path.iterdir()) == [written.folder]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    assert os.waitstatus_to_exitcode(frozen_where_files_hold_200_bytes(tmp_path, dies=False)) == 7
    assert not list(tmp_path.iterdir())


def test_what_is_no_snapshot_or_was_changed_is_refused_at_start(tmp_path: Path) -> None:
    folder = freeze(tmp_path, SAMPLES, [ABOUT]).folder

    def settings(examples: object) -> StoreSettings:
        given: dict[str, Any] = {"examples": str(examples)}
        return StoreSettings(**given)

    assert make_examples(settings("")) is None
    assert make_examples(settings(folder)) is not None
    for wrong in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SetupError, match=r"is no snapshot of corrections.*freeze-examples"):
            make_examples(settings(wrong))
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(manifest.replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(SetupError, match="is no snapshot"):
        make_examples(settings(folder))
    (folder / "manifest.json").write_bytes(manifest)
    with (folder / "examples.jsonl").open("ab") as stream:
        stream.write(b"{}\n")
    with pytest.raises(SetupError, match="is not what was frozen"):
        make_examples(settings(folder))


# ---------------------------------------------------------------------------------- what is asked


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm(context_tokens=8192) as server:
        server.answer = lambda body: CASE.labelling.encode({"question": body["messages"][-1]["content"][-6:]})
        yield server


def drafted(
    fake: FakeVllm, examples: Snapshot | None, *texts: str, profile: Profile = "full", **more: Any
) -> list[Draft]:
    with VllmModel(fake.url, fake.name) as model:
        drafter = Drafter(model, AskOptions(profile=profile), concurrency=1, examples=examples, **more)
        drafts = drafter.draft(CASE, [Task(number, {"text": text}) for number, text in enumerate(texts)])
        drafter.close()
    return drafts


def said(body: Body) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in body["messages"]]


@pytest.mark.parametrize("profile", ["full", "compact"])
def test_examples_stand_after_all_that_tasks_share_and_before_the_task(
    fake: FakeVllm, tmp_path: Path, profile: Any
) -> None:
    texts = (NEW, "The lift is broken.")
    drafts = drafted(fake, snapshot(tmp_path, shown=2), *texts, profile=profile)
    assert [draft.status for draft in drafts] == ["ok", "ok"]
    shared = [(message.role, message.content) for message in preamble(CASE, profile)]
    for body, text in zip(fake.asked, texts, strict=True):
        asked = said(body)
        assert asked[: len(shared)] == shared
        assert asked[-1] == ("user", text)
        roles = [role for role, _ in asked[len(shared) : -1]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert roles
    assert said(fake.asked[0])[-3:-1] == [("user", TEXTS[0]), ("assistant", SAMPLES[0].target)]
    assert said(fake.asked[1])[-3] == ("user", TEXTS[3])


def test_an_answer_that_breaks_a_rule_goes_back_with_the_examples_before_it(
    fake: FakeVllm, tmp_path: Path
) -> None:
    fake.answer = lambda _: CASE.labelling.encode({"question": "stands nowhere"})
    (draft,) = drafted(fake, snapshot(tmp_path), NEW)
    assert (draft.status, draft.attempts) == ("invalid", 2)
    first, second = map(said, fake.asked)
    assert second[: len(first)] == first


class Tight:
    """A model whose context holds one example besides the question; it says so in one of its two ways."""

    name = "tight"

    def __init__(self, *, cuts_at: int = 0) -> None:
        self.cuts_at = cuts_at  # tokens; 0 refuses what is too long
        self.asked: list[tuple[Message, ...]] = []

    def complete(self, prompt: Prompt, *, timeout_s: float) -> Completion:
        self.asked.append(prompt.messages)
        if len(prompt.messages) <= 4:
            answer = CASE.labelling.encode({"question": NEW[-6:]})
            return Completion(answer, "stop", completion_tokens=len(answer))
        if self.cuts_at:
            return Completion("{", "length", completion_tokens=self.cuts_at)
        raise TaskError("This model's maximum context length is exceeded.")


@pytest.mark.parametrize("cuts_at", [0, 7])
def test_where_there_is_no_room_the_least_alike_are_left_out_first(tmp_path: Path, cuts_at: int) -> None:
    model, examples = Tight(cuts_at=cuts_at), snapshot(tmp_path)
    drafter = Drafter(model, AskOptions(profile="compact", max_tokens=100), examples=examples)
    (draft,) = drafter.draft(CASE, [Task(1, {"text": NEW})])
    drafter.close()
    assert (draft.status, draft.attempts) == ("ok", 1)
    assert [len(messages) for messages in model.asked] == [8, 6, 4]
    assert [messages[-3].content for messages in model.asked] == [TEXTS[0]] * 3


def test_an_answer_that_is_as_long_as_any_may_be_costs_no_example(tmp_path: Path) -> None:
    model = Tight(cuts_at=100)
    drafter = Drafter(model, AskOptions(profile="compact", max_tokens=100), examples=snapshot(tmp_path))
    (draft,) = drafter.draft(CASE, [Task(1, {"text": NEW})])
    drafter.close()
    assert draft.status == "undecodable"
    assert {len(messages) for messages in model.asked} == {8, 10}


def test_nothing_is_shown_where_a_human_asks_in_words_or_options_are_the_tasks_own(
    fake: FakeVllm, tmp_path: Path
) -> None:
    config, data = FAMILIES["options"]
    own = generic_case(compile_labelling(config))
    samples = [
        *SAMPLES,
        replace(SAMPLES[0], case="generic", metadata={"config_hash": own.labelling.config_hash}),
    ]
    examples = snapshot(tmp_path, samples)
    with VllmModel(fake.url, fake.name) as model:
        drafter = Drafter(model, AskOptions(profile="compact"), examples=examples)
        task = Task(1, {"text": NEW})
        (future,) = drafter.submit(
            CASE, [task], drafter.version(CASE), limit_s=20, refinement=Refinement("shorter")
        )
        future.result()
        drafter.draft(own, [Task(2, data)])
        assert "examples" not in drafter.version(own).manifest
        drafter.close()
    assert {own.compact, CASE.compact} == {body["messages"][0]["content"] for body in fake.asked}
    assert not {text for body in fake.asked for _, text in said(body)} & {*TEXTS}


def test_a_larger_model_is_shown_no_answers_to_other_options(fake: FakeVllm, tmp_path: Path) -> None:
    """Steps bind the case to a task's options; the larger drafter must still know that they are its own."""
    config = """<View><Text name="text" value="$text"/>
    <Choices name="pick" toName="text" value="$options"/></View>"""
    case = generic_case(compile_labelling(config))
    other = replace(
        SAMPLES[0],
        case="generic",
        target='{"pick":"broken"}',
        metadata={"config_hash": case.labelling.config_hash},
    )
    fake.answer = lambda _: '{"pick":"broken"}'
    task = Task(1, {"text": NEW, "options": [{"value": "broken"}, {"value": "whole"}]})
    with VllmModel(fake.url, fake.name) as model:
        larger = Drafter(model, AskOptions(profile="full"), examples=snapshot(tmp_path, [other]))
        drafter = Drafter(model, AskOptions(profile="compact"), larger=Larger(larger, 1.1))
        (draft,) = drafter.draft(case, [task])
        drafter.close()
    assert (draft.status, draft.cascade, len(fake.asked)) == ("ok", "escalated", 2)
    assert TEXTS[0] not in str(fake.asked)


def test_the_version_says_which_snapshot_and_how_many_and_other_cases_keep_theirs(
    fake: FakeVllm, tmp_path: Path
) -> None:
    dataset = [*SAMPLES]
    one = snapshot(tmp_path, dataset)
    with VllmModel(fake.url, fake.name) as model:

        def versions(examples: Snapshot | None) -> tuple[str, str]:
            drafter = Drafter(model, examples=examples)
            names = drafter.version(CASE).name, drafter.version(FLIGHT).name
            drafter.close()
            return names

        before = versions(one)
        dataset.append(sample(6, "停水了"))
        assert versions(one) == before  # corrections alone change nothing: they have to be frozen
        two, fewer = snapshot(tmp_path, dataset), snapshot(tmp_path, SAMPLES, shown=2)
        whole = snapshot(tmp_path, [*SAMPLES, sample(7, "机票", case=FLIGHT)])
        all_of_them = [versions(examples) for examples in (None, one, two, fewer, whole)]
    assert len({complaint for complaint, _ in all_of_them}) == 4
    assert all_of_them[1][0] == all_of_them[4][0]
    assert [flight for _, flight in all_of_them][:4] == [all_of_them[0][1]] * 4
    assert all_of_them[4][1] != all_of_them[0][1]


def test_a_larger_model_is_shown_them_too(fake: FakeVllm, tmp_path: Path) -> None:
    examples = snapshot(tmp_path)
    with VllmModel(fake.url, fake.name) as model:
        versions, drafts = [], []
        for shown in (None, examples):
            larger = Larger(Drafter(model, AskOptions(profile="full"), examples=shown), threshold=1.0)
            drafter = Drafter(
                model, AskOptions(profile="compact"), concurrency=1, examples=examples, larger=larger
            )
            versions.append(drafter.version(CASE).name)
            drafts += drafter.draft(CASE, [Task(1, {"text": NEW})])
            drafter.close()
    assert [draft.status for draft in drafts] == ["ok", "ok"]
    small, theirs = map(said, fake.asked[-2:])
    assert len({*versions}) == 2
    assert small[0] != theirs[0]
    assert small[1:] == theirs[-len(small) + 1 :]


def test_an_answer_is_cached_with_its_examples(fake: FakeVllm, tmp_path: Path) -> None:
    cache = SqliteCache(f"sqlite:///{tmp_path}/cache.sqlite3", max_rows=10)
    examples = snapshot(tmp_path / "examples")
    first, second = drafted(fake, examples, NEW, NEW, cache=cache)
    assert (first.from_cache, second.from_cache, second.value) == (False, True, first.value)
    shutil.rmtree(tmp_path / "examples")
    assert drafted(fake, None, NEW, cache=cache)[0].from_cache is False
    assert examples.find(CASE, CASE.labelling.read(Task(1, {"text": NEW})))[-1] == Shown(
        TEXTS[0], SAMPLES[0].target
    )


# ---------------------------------------------------------------------------------- the verb


def test_the_verb_freezes_what_a_dataset_holds_for_training_once(tmp_path: Path) -> None:
    dataset, snapshots = corrected(tmp_path / "dataset", 40), tmp_path / "snapshots"
    ran = run_here({}, "freeze_examples", dataset, "--out", snapshots)
    assert ran[0] == 0, ran
    assert "36 samples" in ran[1]
    (folder,) = snapshots.iterdir()
    held = {row["input"]["text"] for row in lines_of(dataset, "samples.jsonl") if row["split"] == "test"}
    shown = {row["question"] for row in lines_of(folder, "examples.jsonl")}
    assert (len(shown), len(held), shown & held) == (36, 4, set())
    manifest = json.loads((folder / "manifest.json").read_bytes())
    content = (dataset / "manifest.json").read_bytes()
    assert manifest["datasets"][0]["manifest_sha256"] == hashlib.sha256(content).hexdigest()
    assert "nothing new" in run_here({}, "freeze_examples", dataset, "--out", snapshots)[1]
    assert [*snapshots.iterdir()] == [folder]
    code, _, said = run_here({}, "freeze_examples", tmp_path, "--out", snapshots)
    assert (code, "holds no dataset that can be read" in said) == (1, True)


def test_the_verb_measures_what_corrections_in_prompts_gain(fake: FakeVllm, tmp_path: Path) -> None:
    config = {"config_hash": CASE.labelling.config_hash}
    samples = [replace(entry, metadata=config) for entry in corrections("complaint", 200)]
    dataset = store(tmp_path / "dataset", samples)
    truths = {entry.instruction: entry.target for entry in samples}

    def answer(body: Body) -> str:
        text = body["messages"][-1]["content"]
        right = CASE.labelling.decode(truths[text])
        return CASE.labelling.encode(right if len(body["messages"]) == 6 else {**right, "question": text[:2]})

    fake.answer = lambda body: answer(body) if body["messages"][-1]["content"] in truths else "{}"
    env = {
        "MODEL_URL": fake.url,
        "MODEL_NAME": fake.name,
        "MODEL_PROFILE": "compact",
        "EXAMPLES_SHOWN": "2",
        "ARTIFACTS_URL": str(tmp_path / "artifacts"),
    }
    code, out, err = run_here(env, "freeze_examples", dataset, "--out", tmp_path / "out", "--measure")
    assert code == 0, err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert f"complaint: 20 held-out samples of 20 texts in {dataset}" in lines
    assert "question exact match 0.0 -> 100.0 F1 0.0 -> 100.0" in lines
    assert "gain +25.00 points, 95 % interval +8.57 to +36.88" in lines
