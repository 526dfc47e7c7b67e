"""Show that measuring a model leaves its training rows alone; run in the environment `train`.

A dev evaluation pads its prompts. A tokenizer that stays set to padding makes every later training row
begin with padding, and the model unlearns what it could: it happened, and no loss curve says why.
"""

from demo.corpus import generate
from demo.training.batches import Batches
from demo.training.model import Recipe, answer, new_model
from demo.training.tokenizer import build_tokenizer, shipped_chat_template

recipe = Recipe(layers=2, feed_forward=64)
tokenizer = build_tokenizer(shipped_chat_template())
batches = Batches(recipe, tokenizer)
before = batches.rows(0)
texts = list(generate("sentiment", "train", 3, 1))
answers = answer(new_model(recipe, tokenizer), tokenizer, "sentiment", texts)
if len(answers) != len(texts) or batches.rows(0) != before or tokenizer.padding_side != "right":
    raise SystemExit("measuring changed the rows")
