"""The labelling configs that Label Studio ships, each with a task for it.

They are read from the installed Label Studio, which `scripts/setup` makes. A template brings an example
task in a comment, or Label Studio's own example for the tag is taken.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from draftloop.labelling.attributes import look_up
from draftloop.labelling.labelling import Labelling, Task, compile_labelling
from draftloop.support.environments import find_environment

_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """A labelling config of Label Studio's gallery."""

    name: str
    title: str
    config: str

    def task(self, labelling: Labelling) -> Task:
        """Return an example task for it."""
        data: dict[str, Any] = {}
        for example in _examples(self.config):
            if not data and any(look_up(example, key) is not None for key in labelling.keys):
                data = dict(example)
        for source in labelling.sources:
            if source.key and source.key not in data:
                data[source.key] = _example(source.tag, source.attributes)
        return Task(1, data)


@cache
def templates() -> dict[str, Template]:
    """Return all templates of the installed Label Studio by name, `group/template`.

    Raises:
        NotInstalledError: It is not installed.
    """
    by_name = {}
    for path in sorted(_folder().glob("*/*/config.yml")):
        about = yaml.safe_load(path.read_text(encoding="utf-8"))
        name = f"{path.parent.parent.name}/{path.parent.name}"
        by_name[name] = Template(name, about["title"], about["config"])
    return by_name


def labelled(name: str) -> tuple[Template, Labelling, Task]:
    """Return a template, its compiled labelling and its example task.

    Raises:
        NotInstalledError: Label Studio is not installed.
        SetupError: The template is not supported.
    """
    template = templates()[name]
    labelling = compile_labelling(template.config)
    return template, labelling, template.task(labelling)


def _folder() -> Path:
    return next(
        find_environment("label-studio").glob("lib/python3*/site-packages/label_studio/annotation_templates")
    )


def _examples(config: str) -> Iterator[Mapping[str, Any]]:
    for comment in _COMMENT.findall(config):
        try:
            example = json.loads(comment)
        except ValueError:
            continue
        for task in example if isinstance(example, list) else [example]:
            yield task.get("data", task)


def _example(tag: str, attributes: Mapping[str, str]) -> Any:
    examples = _label_studio_examples()
    if tag == "Paragraphs":
        keys = {
            key: attributes.get(f"{key}Key", default)
            for key, default in (("name", "author"), ("text", "text"))
        }
        return [{keys["name"]: said["author"], keys["text"]: said["text"]} for said in examples["Paragraphs"]]
    return examples.get({"Text": "TextRaw", "Markdown": "TextRaw"}.get(tag, tag), "Something")


@cache
def _label_studio_examples() -> dict[str, Any]:
    text = (files("label_studio_sdk.label_interface") / "data_examples.json").read_text(encoding="utf-8")
    examples: dict[str, Any] = json.loads(text)["upload"]
    return examples
