"""Samples of every kind: hypothesis's own, and a few written out for trainers to load."""

from typing import Any, get_args

from hypothesis import strategies as st

from draftloop.dataset.sample import Note, Sample, SampleAttempt, SampleFile, SampleStep, Verdict

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_NAMES = st.sampled_from(["a", "b", "text"])
_VALUES = st.dictionaries(
    _NAMES, TEXTS | st.integers(-(2**40), 2**40) | st.lists(TEXTS, max_size=2), max_size=2
)
_FILES = st.builds(
    SampleFile,
    path=_NAMES,
    size_bytes=st.integers(0, 2**40),
    sha256=st.sampled_from(["0" * 64, "f" * 64]),
)
_STEPS = st.builds(
    SampleStep,
    language=st.sampled_from(["python", "javascript", "shell"]),
    code=TEXTS,
    stdout=TEXTS | st.just("much " * 2000),
    stderr=TEXTS,
    exit_status=st.integers(-9, 255),
)
_ATTEMPTS = st.builds(
    SampleAttempt,
    outcome=st.sampled_from(["ok", "failed", "timeout", "killed"]),
    steps=st.lists(_STEPS, min_size=1, max_size=2),
    files=st.lists(_FILES, max_size=1),
)
_METADATA = st.fixed_dictionaries(
    {"config_hash": TEXTS},
    optional={"human": st.integers(1, 9), "updated_at": TEXTS, "lead_time_s": st.floats(0, 1e6)},
)


@st.composite
def samples(draw: st.DrawFn, *, code: bool | None = None) -> Sample:
    """Draw a sample; `code` says whether of a code task, else both kinds come."""
    attempts = [] if code is False else draw(st.lists(_ATTEMPTS, min_size=int(code is True), max_size=2))
    verdict: Verdict = draw(st.sampled_from(VERDICTS))
    target = draw(TEXTS)
    wrong = draw(TEXTS.filter(lambda text: text != target))
    drafted: dict[str, Any] = {
        "accepted": {"draft": {"a": target}, "draft_target": target},
        "corrected": {"draft": {"a": wrong}, "draft_target": wrong, "changed": ("a",)},
        "written": {},
    }[verdict]
    return Sample(
        project=1,
        task=draw(st.integers(1, 99)),
        annotation=draw(st.integers(1, 99)),
        case="c",
        verdict=verdict,
        input=draw(st.dictionaries(_NAMES, TEXTS, max_size=2)),
        system=draw(TEXTS),
        instruction=draw(TEXTS),
        value=draw(_VALUES),
        target=target,
        group=draw(st.sampled_from(["0" * 16, "f" * 16])),
        split=draw(st.sampled_from(["train", "test", None])),
        ground_truth=draw(st.booleans()),
        gates=("readable",),
        notes=(Note(gate="g", reason="r"),) if draw(st.booleans()) else (),
        tokens=draw(st.none() | st.integers(1, 99)),
        attempts=tuple(attempts),
        input_files=tuple(draw(st.lists(_FILES, max_size=1))),
        output_files=tuple(draw(st.lists(_FILES, max_size=1))),
        metadata=draw(_METADATA),
        **drafted,
    )


def written_out(*, code: bool) -> list[Sample]:
    """Return twelve samples, four of each verdict; optionally of a code task, with two attempts each."""
    programs = [("print(1/0)", "", "ZeroDivisionError"), ("print('总数 2')", "总数 2\n", "")]
    attempts = tuple(
        SampleAttempt(
            outcome="ok" if index else "failed",
            steps=[SampleStep(language="python", code=run, stdout=out, stderr=err, exit_status=1 - index)],
        )
        for index, (run, out, err) in enumerate(programs)
    )
    samples_ = []
    for number in range(12):
        right, wrong = f'{{"name":"张三{number}","email":null}}', f'{{"name":"李{number}","email":null}}'
        verdict = VERDICTS[number % 3]
        drafted: dict[str, Any] = {
            "accepted": {"draft": {"name": f"张三{number}"}, "draft_target": right},
            "corrected": {
                "draft": {"name": f"李{number}"},
                "draft_target": wrong,
                "changed": ("name",),
            },
            "written": {},
        }[verdict]
        samples_.append(
            Sample(
                project=1,
                task=number,
                annotation=100 + number,
                case="complaint",
                verdict=verdict,
                input={"text": f"我叫张三{number}😀,快递还没到!"},
                system="从投诉中提取 JSON。",
                instruction=f"我叫张三{number}😀,快递还没到!",
                value={"name": f"张三{number}"},
                target=right,
                group=f"{number:016x}",
                split="test" if number >= 9 else "train",
                attempts=attempts if code else (),
                metadata={"config_hash": "abc"},
                **drafted,
            )
        )
    return samples_
