"""Control tokens: texts that a tokenizer reads as one token, with which the chat template separates turns.

A tokenizer does not know who wrote them. `<|im_end|>` in an annotator's text ends the turn there, and
`</think>` in an answer ends a thought that never began: a row with such a text teaches something else.
"""

import re
from collections.abc import Iterable

# Of Qwen2.5, Qwen3 and their vision models, which the backend asks where no other tokenizer is named.
QWEN = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
DRAFT_NOTE = "holds_control_tokens"  # gate of the note on a sample of which only the draft holds some
_TAG = re.compile(r"</?[^\s<>]+>")


def is_control_token(text: str, *, special: bool) -> bool:
    """Return whether an added token of a tokenizer is one: it is special, or has the form of a tag."""
    return bool(text.strip()) and (special or _TAG.fullmatch(text) is not None)


def control_tokens_in(texts: Iterable[str], tokens: Iterable[str]) -> tuple[str, ...]:
    """Return the control tokens in any of the texts, each once, in the order of `tokens`."""
    joined = "\0".join(texts)
    return tuple(token for token in tokens if token in joined)
