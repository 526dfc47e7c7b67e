"""Training rows and batches made from the generated texts."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from demo.corpus import CASES, Lexicon, generate
from demo.corpus.code_failures import conversations
from demo.training.evaluation import canonical
from demo.training.model import Recipe, prompt_text


@dataclass(frozen=True)
class Row:
    """One tokenised training text."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class Batches:
    """An endless stream of batches of about equal cost, the same for the same recipe.

    Args:
        recipe: Mix, lengths and seed.
        tokenizer: Turns texts into tokens.
        lexicon: More names and words for the texts.
    """

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, lexicon: Lexicon | None = None
    ) -> None:
        self._recipe = recipe
        self._lexicon = lexicon
        self._tokenizer = tokenizer
        self._frames = {}
        for case in CASES if recipe.subject == "cases" else ():
            before, _, after = prompt_text(tokenizer, case, "\0").partition("\0")
            self._frames[case] = (self._ids([before])[0], self._ids([after])[0])

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [list(one.ids) for one in encoded]

    def rows(self, chunk: int) -> list[Row]:
        """Generate and tokenise one chunk of texts.

        Args:
            chunk: Number of the chunk; the seed of its texts.
        Returns:
            Rows of all cases, shuffled by nothing yet.
        """
        seed = self._recipe.seed * 1_000_000 + chunk
        rows = self._case_rows(seed) if self._recipe.subject == "cases" else self._code_rows(seed)
        longest = min(self._recipe.longest, self._recipe.longest_at_first + self._recipe.longer_each * chunk)
        return [row for row in rows if len(row) <= longest]

    def _code_rows(self, seed: int) -> list[Row]:
        drawn = list(conversations("train", self._recipe.chunk_texts, seed))
        prompts = [
            self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, enable_thinking=False, tokenize=False
            )
            for messages, _ in drawn
        ]
        answers = [f"{answer}<|im_end|>" for _, answer in drawn]
        return [Row(*row) for row in zip(self._ids(prompts), self._ids(answers), strict=True)]

    def _case_rows(self, seed: int) -> list[Row]:
        rows = []
        for case, share in zip(CASES, self._recipe.mix, strict=True):
            count = round(self._recipe.chunk_texts * share)
            # What the dev figures are drawn from is spared.
            texts = list(generate(case, "train", count, seed, lexicon=self._lexicon, spare=True))
            before, after = self._frames[case]
            prompts = self._ids([one.text for one in texts])
            answers = self._ids([canonical(one.value) + "<|im_end|>" for one in texts])
            for prompt, answer in zip(prompts, answers, strict=True):
                rows.append(Row(before + prompt + after, answer))
        return rows

    def stream(self, first_chunk: int, every: int = 1) -> Iterator[tuple[int, list[Row]]]:
        """Yield batches from a chunk on.

        Args:
            first_chunk: Where to begin; a resumed run begins after the last one it used.
            every: Step from chunk to chunk; processes that train together take turns.
        Returns:
            Pairs of chunk number and batch.
        """
        chunk = first_chunk
        while True:
            rows = sorted(self.rows(chunk), key=len)
            batches: list[list[Row]] = [[]]
            for row in rows:
                if batches[-1] and len(row) * (len(batches[-1]) + 1) > self._recipe.tokens_per_step:
                    batches.append([])
                batches[-1].append(row)
            random.Random(chunk).shuffle(batches)
            for batch in batches:
                yield chunk, batch
            chunk += every
