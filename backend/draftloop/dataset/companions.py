"""The files beside the rows that describe them for LLaMA-Factory, Axolotl and `datasets`.

Knows what each of these reads. Does not know rows or samples; of files, only names.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from draftloop.dataset.sample import Split

FileTexts = Mapping[str, str]


class Written(NamedTuple):
    """The files of a format: its name, how file names end, and the rows of each split."""

    name: str
    ending: str
    rows: Mapping[Split, int]

    def file(self, split: Split) -> str:
        """Return the name of a split's file."""
        return f"{self.name}{'.test' if split == 'test' else ''}.{self.ending}"

    @property
    def splits(self) -> list[Split]:
        """The splits that have rows; no loader accepts an empty file."""
        return [split for split, count in self.rows.items() if count]


class _Axolotl(NamedTuple):
    settings: Mapping[str, str]
    dataset: Mapping[str, str]


# With `columns`, LLaMA-Factory ignores columns that are not listed.
_CONVERSATIONS = {"messages": "conversations", "system": "system", "tools": "tools"}
_LLAMA_FACTORY: Mapping[str, Mapping[str, Any]] = {
    "alpaca": {
        "formatting": "alpaca",
        "columns": {"prompt": "instruction", "query": "input", "response": "output", "system": "system"},
    },
    "llama-factory": {"formatting": "sharegpt", "columns": _CONVERSATIONS},
    "llama-factory-dpo": {
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {**_CONVERSATIONS, "chosen": "chosen", "rejected": "rejected"},
    },
    "llama-factory-kto": {"formatting": "sharegpt", "columns": {**_CONVERSATIONS, "kto_tag": "label"}},
}
_AXOLOTL: Mapping[str, _Axolotl] = {
    "axolotl": _Axolotl(
        {"chat_template": "tokenizer_default"},
        {
            "type": "chat_template",
            "field_messages": "messages",
            "field_tools": "tools",
            "roles_to_train": '["assistant"]',
        },
    ),
    "axolotl-dpo": _Axolotl(
        {"rl": "dpo", "chat_template": "tokenizer_default"},
        {
            "type": "chat_template.default",
            "field_messages": "messages",
            "field_chosen": "chosen",
            "field_rejected": "rejected",
        },
    ),
    "axolotl-kto": _Axolotl({"rl": "kto", "remove_unused_columns": "false"}, {"type": "chatml.argilla"}),
}
_READ_BY_ALL = ("jsonl", "parquet")  # only `datasets` reads zstd


def llama_factory(forms: Sequence[Written], _: Mapping[str, Any]) -> FileTexts:
    """Return dataset_info.json: the folder is a `dataset_dir` with datasets `NAME` and `NAME-test`."""
    entries = {
        form.name if split == "train" else f"{form.name}-test": {
            "file_name": form.file(split),
            **_LLAMA_FACTORY[form.name],
        }
        for form in forms
        if form.name in _LLAMA_FACTORY and form.ending in _READ_BY_ALL
        for split in form.splits
    }
    return {"dataset_info.json": json.dumps(entries, indent=2) + "\n"} if entries else {}


def axolotl(forms: Sequence[Written], _: Mapping[str, Any]) -> FileTexts:
    """Return the part of an Axolotl config that reads each format."""
    configs = {}
    for form in forms:
        how = _AXOLOTL.get(form.name)
        if how is None or form.ending not in _READ_BY_ALL or not form.splits:
            continue
        lines = ["# Paste this into a config. Paths are relative to where axolotl is started."]
        lines += [f"{key}: {part}" for key, part in how.settings.items()]
        for split in form.splits:
            lines += ["datasets:" if split == "train" else "test_datasets:"]
            lines += [
                f"  - path: {form.file(split)}",
                f"    ds_type: {'parquet' if form.ending == 'parquet' else 'json'}",
                "    split: train",  # the only split of a single file
                *(f"    {name}: {part}" for name, part in how.dataset.items()),
            ]
        configs[f"{form.name}.yaml"] = "\n".join(lines) + "\n"
    return configs


def card(forms: Sequence[Written], counts: Mapping[str, Any]) -> FileTexts:
    """Return the dataset card, where `datasets.load_dataset(FOLDER, FORMAT)` reads files and splits."""
    readable = [form for form in forms if form.splits]
    lines = ["---", "configs:" if readable else "configs: []"]
    for form in readable:
        lines += [f"- config_name: {form.name}", "  data_files:"]
        for split in form.splits:
            lines += [f"  - split: {split}", f"    path: {form.file(split)}"]
    stopped = [f"| {gate} | {count} |" for gate, count in counts["stopped_by"].items()]
    noted = [f"| {gate} | {count} |" for gate, count in counts["noted_by"].items()]
    lines += [
        "---",
        "# What humans submitted in Label Studio",
        "",
        "{annotations} annotations = {samples} samples ({train} train, {test} test) + {held} held + "
        "{rejected} rejected.\nDrafts: {accepted} accepted, {corrected} corrected; without a draft: "
        "{written}.".format_map(counts),
        "",
        "| file | rows |",
        "| --- | --- |",
        *(f"| {form.file(split)} | {count} |" for form in forms for split, count in form.rows.items()),
        "",
        *_why_empty([form.name for form in forms if not form.splits], counts["samples"]),
        "`*.test.*` is held out: never train on it. `samples.jsonl` has everything, `sample.schema.json`",
        "says what a line of it is; `held.jsonl` and `rejected.jsonl` say what is missing here and why.",
    ]
    if stopped:
        lines += ["", "| stopped by | annotations |", "| --- | --- |", *stopped]
    if noted:
        lines += ["", "| noted, not stopped | samples |", "| --- | --- |", *noted]
    return {"README.md": "\n".join(lines) + "\n"}


def _why_empty(names: Sequence[str], samples: int) -> list[str]:
    """Return lines that explain files without rows, where there are samples."""
    if not names or not samples:
        return []
    needs = {"dpo": "a draft that was corrected", "kto": "a draft that was accepted or corrected"}
    rows = [(name, needs.get(name.rpartition("-")[2], "code that was run")) for name in names]
    return [*(f"`{name}` has no rows: each needs {need}." for name, need in rows), ""]


COMPANIONS = (llama_factory, axolotl, card)
