"""Versions of drafts: everything that decides what a draft looks like, and the hash of it.

Knows how a model is asked, and which parts of the flow affect only some drafts. Does not know how a draft is
made.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from draftloop.prompting.prompt import Case, Profile, preamble

# Raised when a change of the flow makes other drafts of the same case, model and task.
_FLOW = 2
SEED = 0  # a draft is repeatable


@dataclass(frozen=True)
class AskOptions:
    """How a model is asked, where a case does not override it.

    profile       how much it is shown besides the task
    bind_quotes   whether the grammar of its answers allows only quotes that are in the text
    temperature   of sampling
    max_tokens    of one answer
    timeout_s     limit of one request
    patient       whether a server that cannot be reached is asked again until the deadline
    """

    profile: Profile = "full"
    bind_quotes: bool = True
    temperature: float = 0.3
    max_tokens: int = 8192
    timeout_s: float = 60.0
    patient: bool = True

    def profile_of(self, case: Case) -> Profile:
        """Return the profile of a case's prompts."""
        return case.overrides.profile or self.profile

    def temperature_of(self, case: Case) -> float:
        """Return the temperature at which a case's answers are sampled."""
        wanted = case.overrides.temperature
        return self.temperature if wanted is None else wanted


class Version(NamedTuple):
    """A version of drafts: `<model>-<hash10>`, and the manifest that it is the hash of."""

    name: str
    manifest: dict[str, Any]


# Returns entries of a manifest for something else that decides the drafts of a case; none where it does not.
Part = Callable[[Case], Mapping[str, Any]]


class Versions:
    """Makes the version of a case's drafts."""

    def __init__(
        self, model: str, options: AskOptions, environment: Callable[[Case], str], parts: Sequence[Part]
    ) -> None:
        """Prepare.

        Args:
            model: Name of the model, where a case does not override it.
            options: How it is asked.
            environment: Describes where a case's code runs.
            parts: Return entries for what else decides drafts, in the order of the manifest.
        """
        self._model = model
        self._options = options
        self._environment = environment
        self._parts = parts

    def model_of(self, case: Case) -> str:
        """Return the name of the model that drafts a case."""
        return case.overrides.model or self._model

    def of(self, case: Case) -> Version:
        """Return the version of a case's drafts."""
        manifest = self._manifest(case)
        text = json.dumps(manifest, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return Version(f"{self.model_of(case)}-{digest}", manifest)

    def _manifest(self, case: Case) -> dict[str, Any]:
        options, labelling = self._options, case.labelling
        profile = options.profile_of(case)
        shared = preamble(case, profile, self._environment(case))
        manifest: dict[str, Any] = {
            "flow": _FLOW,
            "model": self.model_of(case),
            "profile": profile,
            "case": case.name,
            "prompt": [[message.role, message.content] for message in shared],
            "decoding_schema": labelling.decoding_schema,
            "validating_schema": labelling.validating_schema,
            "config": labelling.config_hash,
            "sampling": {
                "temperature": options.temperature_of(case),
                "max_tokens": options.max_tokens,
                "seed": SEED,
            },
        }
        # What follows is left out where it decides nothing, so that those versions keep their hash.
        if options.bind_quotes and case.rules.quoted:
            manifest["quotes"] = "bound"
        for part in self._parts:
            manifest |= part(case)
        return manifest


def overrides_of(case: Case) -> Mapping[str, Any]:
    """Return the part of a manifest that says what the project overrides."""
    overrides = case.overrides.set_fields()
    return {"overrides": overrides} if overrides else {}
