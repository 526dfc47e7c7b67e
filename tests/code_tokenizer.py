"""Write the tokenizer of the code model's recipe into a folder, and hold it against texts; run in `train`.

    python tests/code_tokenizer.py FOLDER

Every prompt and answer must come back as it was, and be short enough for the model.
"""

import sys

from demo.corpus.code_failures import conversations
from demo.training.model import CODE, tokenizer_of
from demo.training.tokenizer import MAX_TOKENS

tokenizer = tokenizer_of(CODE)
for split in ("train", "held_out"):
    for messages, answer in conversations(split, 150, 1):
        ids: list[int] = []
        for text in (*(message["content"] for message in messages), answer):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if tokenizer.decode(ids) != text:
                sys.exit(f"comes back otherwise: {text}")
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False)
        if len(prompt["input_ids"]) + len(ids) > MAX_TOKENS:
            sys.exit(f"too long: {messages}")
        if len(ids) > 200:
            sys.exit(f"{len(ids)} tokens for {answer}")
tokenizer.save_pretrained(sys.argv[1])
