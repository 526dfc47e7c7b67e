"""draftloop promote on real servers: what is worse is refused, what is better drafts, and it goes back.

The adapters are PEFT's (tests/consumers/peft_adapters.py): `zero` drafts as the base does, `worse` worse than
it. So `zero` is better than a project's version by construction once `worse` is that version. What breaks in
between is in tests/flywheel.
"""

from pathlib import Path

from draftloop.prompting.prompt import Promoted
from tests.conftest import LabelStudioServer, ModelServer
from tests.promotions import TASKS, staged
from tests.verbs import run_here


def test_what_is_worse_is_refused_what_is_better_drafts_and_is_rolled_back(
    label_studio: LabelStudioServer, vllm: ModelServer, runs: dict[str, Path], tmp_path: Path
) -> None:
    with staged(label_studio, vllm, runs, tmp_path) as stage:
        base = stage.base
        assert stage.shown() == base
        code, out, err = stage.promote(runs["worse"])
        assert code == 3, out + err
        assert "not surely better" in out
        assert stage.drafted_by() == {base}
        assert stage.predictions() == [[base]] * TASKS

        # Its project is given the refused one by hand: what drafts as the base does is better than that.
        (refused,) = [name for name in stage.adapters.folder.iterdir() if stage.adapters.find(name.name)]
        stage.ledger.promote(stage.project.id, Promoted(refused.name, "compact"))
        (worse,) = stage.drafted_by()
        assert worse.startswith(f"{refused.name}-")
        code, out, err = stage.promote(runs["zero"])
        assert code == 0, out + err
        (zero,) = stage.drafted_by()
        assert f"promoted: {zero[:-11]}, version {zero}" in out
        assert stage.shown() == zero
        begun, fresh = [[base]] * 2, [[base, zero]] * (TASKS - 2)
        assert stage.predictions() == begun + fresh
        entry = stage.adapters.journal()[-2]
        assert (entry["action"], entry["instead_of"]) == ("promote", refused.name)
        assert stage.adapters.evidence(entry["evidence"]).is_file()

        code, out, err = stage.promote("--rollback")
        assert code == 0, out + err
        assert stage.drafted_by() == {worse}
        assert stage.shown() == worse
        code, out, err = stage.promote("--rollback")
        assert code == 0, out + err
        assert stage.drafted_by() == {base}
        assert stage.shown() == base
        assert stage.predictions() == begun + [[base, zero, worse]] * (TASKS - 2)
        code, _, err = stage.promote("--rollback")
        assert code == 1
        assert "nothing to roll back" in err
        code, out, _ = run_here(stage.env, "promote", "--list")
        actions = [line.split("  ")[2].split()[0] for line in out.splitlines()]
        assert actions == ["refuse", "promote", "draft", "roll", "draft", "roll", "draft"]


def test_help_shows_examples_and_wrong_usage_exits_with_2() -> None:
    code, out, _ = run_here({}, "promote", "--help")
    assert code == 0
    assert "draftloop promote --rollback --project 7" in out
    for arguments in ([], ["run"], ["run", "--project", 1, "--rollback"], ["--project", 1]):
        assert run_here({}, "promote", *arguments)[0] == 2
