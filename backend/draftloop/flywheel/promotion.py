"""Flow 3: a trained adapter -> registered -> compared with the current version -> promoted, or refused.

Knows the order of the steps and which versions are compared. Does not know how figures are computed
(`evaluation.measures`), how a draft is made (`drafting`), or how drafts are stored.

Until the last step nothing changes for annotators: after any failure the old version serves, and the same
call can be repeated. The last step writes one row of the ledger, which every process reads at each request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from draftloop.errors import SetupError
from draftloop.evaluation.measures import (
    MIN_GROUPS,
    DraftOutcome,
    Interval,
    count_groups,
    figures,
    gain,
    objections,
)
from draftloop.flywheel.adapters import Adapter, Adapters
from draftloop.flywheel.heldout import BulkDrafter, CaseFolder, HeldOut, HeldOutSamples, Projects, measure
from draftloop.labelstudio import Project
from draftloop.prompting.prompt import Case, Overrides, Promoted, parse_extra_params
from draftloop.support.progress import UNWATCHED, Progress

MARGIN = 0.01  # the loss in quality that is allowed in another case
ROLLBACK_ACTION = "roll back"  # in the journal


class AdapterServer(Protocol):
    """The server of the base model, which loads adapters while it runs."""

    @property
    def name(self) -> str:
        """Name of the base model."""
        ...

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter into the server; does nothing where one of this name is loaded."""
        ...


class Promotions(Protocol):
    """The part of the ledger that stores which adapter drafts for which project."""

    def promoted(self, project: int) -> Promoted | None:
        """Return the adapter that drafts for a project; None where it is the configured model."""
        ...

    def all_promoted(self) -> dict[int, Promoted]:
        """Return the adapter of every project that has one."""
        ...

    def promote(self, project: int, promoted: Promoted) -> None:
        """Make an adapter draft for a project from the next request on, in every process."""
        ...

    def roll_back(self, project: int) -> tuple[Promoted, Promoted | None]:
        """Undo a project's last promotion; return the adapter that drafted, and the one that drafts now.

        Raises:
            SetupError: There is no promotion.
        """
        ...


@dataclass(frozen=True)
class Decision:
    """The result of a promotion: promoted without objections; `already` where the adapter drafted before."""

    adapter: Adapter
    objections: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    evidence_file: Path | None = None
    already: bool = False

    @property
    def promoted(self) -> bool:
        """Whether the adapter drafts for the project now."""
        return not self.objections


class Flywheel:
    """Promotes adapters and rolls promotions back. The caller must lock the registry."""

    def __init__(
        self,
        label_studio: Projects,
        cases: CaseFolder,
        adapters: Adapters,
        ledger: Promotions,
        model: AdapterServer,
        drafter: BulkDrafter,
    ) -> None:
        """Prepare.

        Args:
            label_studio: The server with the projects.
            cases: The projects' cases.
            adapters: The registry.
            ledger: The backend's ledger.
            model: The server of the base model, which loads the adapter.
            drafter: Drafts the held-out samples, without a cache, so that times are real.
        """
        self._label_studio = label_studio
        self._cases = cases
        self._samples = HeldOutSamples(cases, label_studio)
        self._adapters = adapters
        self._ledger = ledger
        self._model = model
        self._drafter = drafter

    def promote(
        self,
        project_id: int,
        run: Path,
        *,
        who: str,
        dataset: Path | None = None,
        guards: Sequence[Path] = (),
        margin: float = MARGIN,
        progress: Progress = UNWATCHED,
    ) -> Decision:
        """Promote an adapter for a project, if it is better than the current version with 95 % confidence.

        Args:
            project_id: The project.
            run: The folder of the adapter's training.
            who: Who asks for it, for the journal.
            dataset: The dataset to measure on; by default, the one that the adapter was trained on.
            guards: Datasets of cases that must not get worse; by default, those of other projects with an
                adapter on the same base model. The other cases of `dataset` are always checked.
            margin: The loss that is allowed in those, 0..1.
            progress: Shows the steps.
        Raises:
            SetupError: The run, the adapter or a dataset is missing or invalid.
            ServiceError: A server or the disk failed; the old version serves.
        """
        project = self._label_studio.project(project_id)
        adapter = self._adapters.register(run, self._model.name)
        now = self._wishes(project, self._ledger.promoted(project_id))
        then = self._wishes(project, _of(adapter))
        if now == then:
            return Decision(adapter, already=True)
        target, others = self._held_out(project, adapter, dataset, guards)
        self._model.load_adapter(adapter.name, adapter.folder)
        outcomes = {
            name: (
                self._outcomes(held, was, f"{name}, what drafts now", progress),
                self._outcomes(held, becomes, f"{name}, {adapter.name}", progress),
            )
            for name, held, was, becomes in [
                (self._case(project, now).name, target, now, then),
                *((name, held, _model_only(now), _model_only(then)) for name, held in others.items()),
            ]
        }
        gains = {name: gain(before, after) for name, (before, after) in outcomes.items()}
        own, *rest = gains
        reasons = objections(gains[own], {name: gains[name] for name in rest}, margin)
        evidence = {
            "adapter": adapter.name,
            "run": dict(adapter.run),
            "margin": margin,
            "before": self._drafter.version(self._case(project, now)).name,
            "after": self._drafter.version(self._case(project, then)).name,
            "cases": {
                name: _summarize_case(outcomes[name], gains[name], held)
                for name, held in {own: target, **others}.items()
            },
        }
        kept = self._adapters.keep_evidence(evidence)
        # Written before the switch, so that no promotion is missing in the journal. An entry without a row in
        # the ledger was interrupted between the two.
        self._note(
            "refuse" if reasons else "promote",
            project_id,
            who,
            adapter=adapter.name,
            instead_of=now.model or self._model.name,
            dataset=next(iter(target.datasets)),
            evidence=kept,
            reasons=reasons,
        )
        if not reasons:
            self._ledger.promote(project_id, _of(adapter))
        return Decision(adapter, tuple(reasons), evidence, self._adapters.evidence(kept))

    def roll_back(self, project_id: int, *, who: str) -> tuple[str, Promoted | None]:
        """Undo a project's last promotion; return the name of what drafted, and what drafts now.

        After a roll-back that was interrupted before `drafted`, no further promotion is undone.

        Raises:
            SetupError: There is no promotion.
        """
        now = self._ledger.promoted(project_id)
        for last in [entry for entry in self._adapters.journal() if entry["project"] == project_id][-1:]:
            if last["action"] == ROLLBACK_ACTION and (now is None or now.model != last["adapter"]):
                return last["adapter"], now
        if now is not None:
            self._note(ROLLBACK_ACTION, project_id, who, adapter=now.model)
        was, below = self._ledger.roll_back(project_id)
        return was.model, below

    def drafted(self, project_id: int, version: str, *, who: str) -> None:
        """Note in the journal that a project's tasks have drafts of the current version."""
        self._note("draft", project_id, who, version=version)

    def current(self, project: Project) -> Case:
        """Return a project's case with the settings of its current drafts."""
        return self._case(project, self._wishes(project, self._ledger.promoted(project.id)))

    def _wishes(self, project: Project, promoted: Promoted | None) -> Overrides:
        _, overrides = parse_extra_params(project.extra_params)
        return overrides.served_by(promoted)

    def _case(self, project: Project, overrides: Overrides) -> Case:
        return self._cases.find(project.label_config, project.case, overrides)

    def _note(self, action: str, project: int, who: str, **more: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._adapters.note(
            {"at": at, "who": who, "action": action, "project": project, "model": self._model.name, **more}
        )

    # ------------------------------------------------------------------------------ what is measured

    def _held_out(
        self, project: Project, adapter: Adapter, dataset: Path | None, guards: Sequence[Path]
    ) -> tuple[HeldOut, dict[str, HeldOut]]:
        """Return the held-out samples of the project's case, and those of other cases by name."""
        trained_on = (adapter.run.get("dataset") or {}).get("path")
        folder = dataset or (Path(trained_on) if trained_on else None)
        if folder is None:
            raise SetupError("The run does not say its dataset.", hint="Name it with --dataset.")
        case = self._case(project, Overrides()).name
        others = self._samples.read(folder)
        target = others.pop(case, HeldOut())
        count = len({row.sample.group for row in target.rows})
        if count < MIN_GROUPS:
            lost = f" ({target.lost} more have another task or config than now)" if target.lost else ""
            raise SetupError(
                f"{folder} holds out {count} different texts of case '{case}'{lost}; an interval needs "
                f"{MIN_GROUPS}.",
                hint="One in ten is held out: correct more tasks and sync again, or name another --dataset.",
            )
        for guard in guards or self._guards(project.id):
            if guard.resolve() == folder.resolve():
                continue
            more = self._samples.read(guard)
            if not any(held.rows for held in more.values()):
                raise SetupError(f"{guard} holds out no sample.", hint="Name another with --guard.")
            for name, held in more.items():
                others[f"{name} of {guard}" if name == case or name in others else name] = held
        return target, {name: held for name, held in others.items() if held.rows}

    def _guards(self, project: int) -> list[Path]:
        """Return the datasets with which adapters of other projects on the same base were promoted."""
        active = self._ledger.all_promoted()
        datasets: dict[int, Path] = {}
        for entry in self._adapters.journal():
            promoted = active.get(entry["project"])
            same = (
                promoted is not None and entry["action"] == "promote" and entry["adapter"] == promoted.model
            )
            if same and entry["model"] == self._model.name and entry["project"] != project:
                datasets[entry["project"]] = Path(entry["dataset"])
        return list(dict.fromkeys(datasets.values()))

    def _outcomes(
        self, held: HeldOut, overrides: Overrides, doing: str, progress: Progress
    ) -> list[DraftOutcome]:
        return [one.outcome for one in measure(self._drafter, held, overrides, doing, progress)]


def _of(adapter: Adapter) -> Promoted:
    return Promoted(adapter.name, adapter.run["profile"])


def _model_only(overrides: Overrides) -> Overrides:
    """Drop all overrides but model and profile: a project's instruction does not fit other cases."""
    return Overrides(model=overrides.model, profile=overrides.profile)


def _summarize_case(
    outcomes: tuple[Sequence[DraftOutcome], Sequence[DraftOutcome]], change: Interval, held: HeldOut
) -> dict[str, Any]:
    before, after = outcomes
    return {
        "before": figures(before),
        "after": figures(after),
        "gain": change._asdict(),
        "texts": count_groups(before),
        "lost": held.lost,
        "datasets": held.datasets,
        "samples": [
            [
                row.sample.project,
                row.sample.annotation,
                row.sample.group,
                round(old.quality, 4),
                round(new.quality, 4),
            ]
            for row, old, new in zip(held.rows, before, after, strict=True)
        ],
    }
