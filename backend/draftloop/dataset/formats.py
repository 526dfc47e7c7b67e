"""Rows in the formats of trainers, each a pure function of the sample.

Knows what every trainer's own loader accepts, drops and misreads. Does not know files.
Supervised rows come from every sample. Preference rows come from drafts that a human judged: a corrected
draft against its correction (DPO); drafts judged right or wrong, and corrections (KTO).

Source:
    the loaders of TRL 1.16, LLaMA-Factory 0.9.5, ms-swift 4.6.0 and Axolotl 0.19.0, with which
    `scripts/test --trainers` reads these rows. OpenAI's follow its documentation, and were not loaded.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from draftloop.dataset.sample import ChatMessage, Sample, conversation, tools
from draftloop.model.control_tokens import DRAFT_NOTE

Row = dict[str, Any]

# Roles of a conversation as ShareGPT and ms-swift call them.
_SHAREGPT = {"user": "human", "assistant": "gpt", "call": "function_call", "tool": "observation"}
_SWIFT = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "call": "tool_call",
    "tool": "tool_response",
}


class JudgedAnswer(NamedTuple):
    """An answer to a sample's question, and whether a human confirmed it."""

    text: str
    is_right: bool


def judged_answers(sample: Sample) -> list[JudgedAnswer]:
    """Return the answers that a human judged: an accepted draft, or a corrected one and its correction."""
    if sample.draft_target is None or any(note["gate"] == DRAFT_NOTE for note in sample.notes):
        return []
    if sample.verdict == "accepted" or sample.draft_target == sample.target:
        return [JudgedAnswer(sample.target, is_right=True)]
    return [JudgedAnswer(sample.draft_target, is_right=False), JudgedAnswer(sample.target, is_right=True)]


def pairs(sample: Sample) -> list[tuple[str, str]]:
    """Return pairs of correction and draft: one where a draft was corrected, else none."""
    judged = judged_answers(sample)
    return [(judged[1].text, judged[0].text)] if len(judged) == 2 else []


# ---------------------------------------------------------------------------------- one function a format


def alpaca(sample: Sample) -> list[Row]:
    """Alpaca: `instruction` is the whole user turn; the `output` of a code task is its final program.

    So no template changes the prompt. The program is not wrapped in JSON, and the system message of code
    tasks, which asks for JSON, is left out. Code that nobody ran has no row.
    """
    if sample.is_code:
        output, system = sample.final_code, ""
    else:
        output, system = sample.target, sample.system
    row = {"instruction": sample.instruction, "input": "", "output": output, "system": system}
    return [row] if output or not sample.is_code else []


def sharegpt(sample: Sample) -> list[Row]:
    """ShareGPT: conversations of `human` and `gpt`, with `function_call` and `observation` between."""
    turns = _turns(conversation(sample)[1:], _SHAREGPT, "from", "value")
    return [{"conversations": turns} | {"system": sample.system} | _tools_text(sample)]


def openai(sample: Sample) -> list[Row]:
    """OpenAI's fine-tuning files: messages as in the API, `arguments` as a JSON string."""
    return [{"messages": _wire(conversation(sample))} | _tools(sample)]


def openai_dpo(sample: Sample) -> list[Row]:
    """OpenAI's preference files."""
    return [
        {
            "input": {"messages": _wire(conversation(sample)[:-1])} | _tools(sample),
            "preferred_output": [_assistant(chosen)],
            "non_preferred_output": [_assistant(rejected)],
        }
        for chosen, rejected in pairs(sample)
    ]


def messages(sample: Sample) -> list[Row]:
    """TRL's SFTTrainer: Qwen chat messages, and `tools` where programs were run."""
    return [{"messages": conversation(sample)} | _tools(sample)]


def prompt_completion(sample: Sample) -> list[Row]:
    """TRL's SFTTrainer: the prompt, and separately the answer; only the answer is trained."""
    return [{"prompt": conversation(sample)[:-1], "completion": [_assistant(sample.target)]} | _tools(sample)]


def trl_dpo(sample: Sample) -> list[Row]:
    """TRL's DPOTrainer: the correction is chosen, the draft rejected."""
    prompt = conversation(sample)[:-1]
    return [
        {"prompt": prompt, "chosen": [_assistant(chosen)], "rejected": [_assistant(rejected)]}
        | _tools(sample)
        for chosen, rejected in pairs(sample)
    ]


def trl_kto(sample: Sample) -> list[Row]:
    """TRL's KTOTrainer: a row for each answer that was judged."""
    prompt = conversation(sample)[:-1]
    return [
        {"prompt": prompt, "completion": [_assistant(answer.text)], "label": answer.is_right} | _tools(sample)
        for answer in judged_answers(sample)
    ]


def llama_factory(sample: Sample) -> list[Row]:
    """LLaMA-Factory: ShareGPT; every row has `tools`, empty where there are none."""
    return [{"tools": ""} | row for row in sharegpt(sample)]


def llama_factory_dpo(sample: Sample) -> list[Row]:
    """LLaMA-Factory with `ranking`: the conversation ends before the answer."""
    (row,) = llama_factory(sample)
    return [
        row
        | {
            "conversations": row["conversations"][:-1],
            "chosen": {"from": "gpt", "value": chosen},
            "rejected": {"from": "gpt", "value": rejected},
        }
        for chosen, rejected in pairs(sample)
    ]


def llama_factory_kto(sample: Sample) -> list[Row]:
    """LLaMA-Factory with `kto_tag`, a boolean."""
    (row,) = llama_factory(sample)
    return [
        row
        | {
            "conversations": [*row["conversations"][:-1], {"from": "gpt", "value": answer.text}],
            "label": answer.is_right,
        }
        for answer in judged_answers(sample)
    ]


def ms_swift(sample: Sample) -> list[Row]:
    """Write ms-swift's standard format: `tools` and the calls are JSON strings."""
    return [{"messages": _turns(conversation(sample), _SWIFT, "role", "content")} | _tools_text(sample)]


def ms_swift_dpo(sample: Sample) -> list[Row]:
    """Write ms-swift's preference rows: the messages end with the correction."""
    (row,) = ms_swift(sample)
    return [row | {"rejected_response": rejected} for _, rejected in pairs(sample)]


def ms_swift_kto(sample: Sample) -> list[Row]:
    """Write ms-swift's KTO rows: `label` judges the last message."""
    (row,) = ms_swift(sample)
    return [
        row
        | {
            "messages": [*row["messages"][:-1], {"role": "assistant", "content": answer.text}],
            "label": answer.is_right,
        }
        for answer in judged_answers(sample)
    ]


def axolotl(sample: Sample) -> list[Row]:
    """Axolotl's `chat_template`: messages and tools."""
    return messages(sample)


def axolotl_dpo(sample: Sample) -> list[Row]:
    """Axolotl's `chat_template.default`, which reads roles and contents only: runs of code are left out."""
    return [
        {
            "messages": conversation(replace(sample, attempts=()))[:-1],
            "chosen": _assistant(chosen),
            "rejected": _assistant(rejected),
        }
        for chosen, rejected in pairs(sample)
    ]


def axolotl_kto(sample: Sample) -> list[Row]:
    """Axolotl's `chatml.argilla`, one turn: runs of code are left out."""
    return [
        {
            "system": sample.system,
            "instruction": sample.instruction,
            "completion": answer.text,
            "label": answer.is_right,
        }
        for answer in judged_answers(sample)
    ]


def _assistant(text: str) -> ChatMessage:
    return {"role": "assistant", "content": text}


def _tools(sample: Sample) -> Row:
    return {"tools": tools(sample)} if sample.attempts else {}


def _tools_text(sample: Sample) -> Row:
    return {"tools": _compact([tool["function"] for tool in tools(sample)])} if sample.attempts else {}


def _turns(
    conversation_: Sequence[ChatMessage], roles: Mapping[str, str], role: str, content: str
) -> list[ChatMessage]:
    turns = []
    for message in conversation_:
        if "tool_calls" in message:
            (call,) = message["tool_calls"]
            turns.append({role: roles["call"], content: _compact(call["function"])})
        else:
            turns.append({role: roles[message["role"]], content: message["content"]})
    return turns


def _wire(conversation_: Sequence[ChatMessage]) -> list[ChatMessage]:
    wire: list[ChatMessage] = []
    for message in conversation_:
        if "tool_calls" in message:
            (call,) = message["tool_calls"]
            function = call["function"] | {"arguments": _compact(call["function"]["arguments"])}
            sent = {"id": f"call_{len(wire)}", "type": "function", "function": function}
            wire.append({"role": "assistant", "content": "", "tool_calls": [sent]})
        elif message["role"] == "tool":
            call_id = f"call_{len(wire) - 1}"
            wire.append({"role": "tool", "tool_call_id": call_id, "content": message["content"]})
        else:
            wire.append(message)
    return wire


def _compact(part: Any) -> str:
    return json.dumps(part, ensure_ascii=False, separators=(",", ":"))


class Format(NamedTuple):
    """A format of training rows: the name of its files, and the rows that a sample gives."""

    name: str
    rows: Callable[[Sample], list[Row]]


FORMATS: tuple[Format, ...] = (
    Format("alpaca", alpaca),
    Format("sharegpt", sharegpt),
    Format("openai", openai),
    Format("openai-dpo", openai_dpo),
    Format("messages", messages),
    Format("prompt-completion", prompt_completion),
    Format("trl-dpo", trl_dpo),
    Format("trl-kto", trl_kto),
    Format("llama-factory", llama_factory),
    Format("llama-factory-dpo", llama_factory_dpo),
    Format("llama-factory-kto", llama_factory_kto),
    Format("ms-swift", ms_swift),
    Format("ms-swift-dpo", ms_swift_dpo),
    Format("ms-swift-kto", ms_swift_kto),
    Format("axolotl", axolotl),
    Format("axolotl-dpo", axolotl_dpo),
    Format("axolotl-kto", axolotl_kto),
)
DEFAULT_FORMATS = ("alpaca", "messages")
