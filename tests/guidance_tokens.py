"""Print which training targets the decoder could not write token by token; run in the environment `vllm`.

    python tests/guidance_tokens.py MODEL < ROWS

A row: {"target": "...", "schema": {...}}, or a "grammar" instead of the schema.

Prints one JSON line per target with a token that guidance does not allow where it stands: then the model
was trained on something that it is never asked for.
"""

import json
import sys

import llguidance
import llguidance.hf
import llguidance.numpy
from transformers import AutoTokenizer


def main(folder: str) -> None:
    """Walk every target through the grammar of its schema."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = llguidance.hf.from_tokenizer(tokenizer, len(tokenizer))
    mask = llguidance.numpy.allocate_token_bitmask(1, known.vocab_size)
    for line in sys.stdin:
        row = json.loads(line)
        if "grammar" in row:
            grammar = llguidance.grammar_from("grammar", row["grammar"])
        else:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(row["schema"]), overrides={"whitespace_flexible": False}
            )
        matcher = llguidance.LLMatcher(known, grammar)
        ids = [*tokenizer(row["target"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for at, token in enumerate(ids):
            llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
            if not int(mask[0][token // 32]) >> (token % 32) & 1:
                refused = {"written": tokenizer.decode(ids[:at]), "refused": tokenizer.decode([token])}
                sys.stdout.write(json.dumps(refused, ensure_ascii=False) + "\n")
                break
            matcher.consume_token(token)


if __name__ == "__main__":
    main(sys.argv[1])
