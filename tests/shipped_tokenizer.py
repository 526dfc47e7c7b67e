"""Show that the shipped tokenizer is the one that the trainer builds; run in the environment `train`.

A training run with another tokenizer than the one whose tokens were held against the decoder is lost: nothing
tells before the model is served.
"""

import json
import sys
import tempfile
from pathlib import Path

from demo.training.tokenizer import build_tokenizer, shipped_chat_template

shipped = json.loads(Path("demo/models/tiny-qwen3/tokenizer.json").read_text(encoding="utf-8"))
with tempfile.TemporaryDirectory() as folder:
    build_tokenizer(shipped_chat_template()).save_pretrained(folder)
    built = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
different = [part for part in shipped if shipped[part] != built[part]]
if different:
    sys.exit(f"demo/models/tiny-qwen3/tokenizer.json differs from what the trainer builds in: {different}")
