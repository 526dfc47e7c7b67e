"""Train an embedded model from nothing on the corpus: start, batches, loop, checkpoints.

Knows PyTorch and transformers; the texts come from `demo.corpus`, the figures from
`demo.training.evaluation`. One process per core, each with its own texts and one thread, with the gradients
averaged after every step: at this size half as much again as one process with two threads. The time limit is
CPU time of all of them, so that a busy machine changes the hours, not the model.
"""

import copy
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from demo.corpus import CASES, INSTRUCTIONS, Generated, Lexicon, generate, load_lexicon
from demo.corpus.code_failures import conversations
from demo.corpus.words import word_list
from demo.training.evaluation import canonical, score
from demo.training.muon import Muon
from demo.training.tokenizer import (
    MAX_TOKENS,
    build_tokenizer,
    case_tokens,
    code_pieces,
    code_tokens,
    json_pieces,
    shipped_chat_template,
)

_ROPE_THETA = 1e6
_HEAD = 64  # among the head sizes that vLLM's CPU attention takes
_DEV_SEED = 1_000_003  # figures of the model card are drawn with other seeds
_IGNORED = -100
# Without AVX-512 a step in bfloat16 takes fourteen times as long as one in float32.
_HAS_BFLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class StartError(ValueError):
    """A run cannot begin from the weights or the checkpoint that were named."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, besides the corpus; `subject` says which part of that."""

    subject: Literal["cases", "code"] = "cases"
    hidden: int = 256
    layers: int = 4
    feed_forward: int = 512
    heads: int = 4
    kv_heads: int = 2
    cpu_minutes: float = 110.0
    decay_share: float = 0.75
    optimizer: Literal["muon", "adamw"] = "muon"  # of the layers' matrices; all else is AdamW's
    learning_rate: float = 2e-3  # AdamW's
    muon_rate: float = 0.02
    momentum: float = 0.95  # Muon's
    weight_decay: float = 0.05  # of matrices
    warmup_steps: int = 80
    tokens_per_step: int = 3072  # of each process
    longest: int = 480
    longest_at_first: int = 140  # copying is learned on short texts, in the first thirty chunks
    longer_each: int = 12  # chunk
    chunk_texts: int = 512
    dev_programs: int = 96
    structure_weight: float = 3.0
    ema: float = 0.995
    processes: int = 2
    seed: int = 0
    mix: tuple[float, ...] = (0.34, 0.22, 0.38, 0.06)  # shares of the texts, in the order of CASES


# With the vocabulary of the usual size, which is most of it, in less than 3 MB.
SMALL = Recipe(hidden=192, layers=2, feed_forward=256, cpu_minutes=25.0)
CODE = Recipe(
    subject="code",
    feed_forward=640,
    longest=1000,
    longest_at_first=320,
    longer_each=24,
    chunk_texts=256,
)


def tokenizer_of(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a recipe."""
    tokens = case_tokens() if recipe.subject == "cases" else code_tokens()
    return build_tokenizer(shipped_chat_template(), tokens)


def _orthogonal(rows: int, columns: int) -> torch.Tensor:
    """Draw a matrix with orthonormal columns."""
    return torch.linalg.qr(torch.randn(rows, columns))[0]


@torch.no_grad()
def start_with_induction(model: Qwen3ForCausalLM) -> None:
    """Set the weights so that the untrained model already copies.

    Plain Qwen3 weights, no change of architecture. Layer 0 has heads that look exactly one and two
    tokens back and write what they see into two subspaces of their own. Every later layer compares
    (current, previous) with (previous, the one before that) of earlier positions, which is a match of two
    tokens, and adds the embedding found there, which the tied output reads as the next token. From random
    weights the same circuit takes most of the budget to appear.

    Args:
        model: A fresh model; changed in place.
    """
    hidden = model.config.hidden_size
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, 0.06)
    embedding[:, 0] = 0.25  # a constant channel: the heads that look at positions need no content
    frequencies = _ROPE_THETA ** (-torch.arange(_HEAD // 2) / (_HEAD // 2))
    fast = (torch.arange(_HEAD // 2) < 8).float()

    def offset(distance: float) -> torch.Tensor:
        phase = frequencies * distance
        return torch.cat([fast * torch.cos(phase), fast * torch.sin(phase)])

    # Three subspaces that do not disturb one another: what is here, one back, two back.
    basis = _orthogonal(hidden, hidden)
    basis[0] = 0
    one_back, two_back = basis[:, :_HEAD], basis[:, _HEAD : 2 * _HEAD]
    rest = basis[:, 2 * _HEAD :]
    identity = rest[:, :_HEAD].T.contiguous()
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    first = model.model.layers[0].self_attn
    first.q_proj.weight.mul_(0.2)
    first.k_proj.weight.mul_(0.2)
    for kv, target in enumerate((one_back, two_back)):
        key_rows = slice(kv * _HEAD, (kv + 1) * _HEAD)
        first.k_proj.weight[key_rows, 0] = offset(0) * 3
        first.v_proj.weight[key_rows] = identity
        for head in range(kv * group, (kv + 1) * group):
            rows = slice(head * _HEAD, (head + 1) * _HEAD)
            first.q_proj.weight[rows, 0] = offset(-(kv + 1)) * 3
            if head == kv * group:
                first.o_proj.weight[:, rows] = target * 0.12
            else:
                first.o_proj.weight[:, rows].mul_(0.3)
    first.q_norm.weight.fill_(1.6)
    first.k_norm.weight.fill_(1.6)
    # Matching ignores distance: the channels that RoPE turns quickly are damped.
    steady = torch.ones(_HEAD, 1)
    steady[:12] = steady[_HEAD // 2 : _HEAD // 2 + 12] = 0.15
    turned = _orthogonal(_HEAD, _HEAD)
    for layer in model.model.layers[1:]:
        attention = layer.self_attn
        for kv in range(model.config.num_key_value_heads):
            query, key = identity.clone(), one_back.T.clone()
            if kv == 0:
                query, key = query + turned @ one_back.T, key + turned @ two_back.T
            key_rows = slice(kv * _HEAD, (kv + 1) * _HEAD)
            attention.k_proj.weight[key_rows] = key * steady + torch.randn(_HEAD, hidden) * 0.01
            copied = (rest @ _orthogonal(rest.shape[1], _HEAD)).T
            attention.v_proj.weight[key_rows] = copied
            for head in range(kv * group, (kv + 1) * group):
                rows = slice(head * _HEAD, (head + 1) * _HEAD)
                matching = head == kv * group
                noise = torch.randn(_HEAD, hidden)
                attention.q_proj.weight[rows] = query * steady + noise * 0.01 if matching else noise * 0.06
                attention.o_proj.weight[:, rows] = copied.T * (0.2 if matching else 0.05)
        attention.q_norm.weight.fill_(1.5)
        attention.k_norm.weight.fill_(1.5)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.mul_(0.5)


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Make an untrained model for a recipe.

    Args:
        recipe: Sizes and seed.
        tokenizer: Gives the vocabulary and the special tokens.
    Returns:
        The model, started with induction.
    """
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=_HEAD,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = "eager"  # a fifth cheaper than sdpa at this size
    model = Qwen3ForCausalLM(config)
    start_with_induction(model)
    return model


def prompt_text(tokenizer: PreTrainedTokenizerFast, case: str, text: str) -> str:
    """Render the compact prompt: one-line instruction, text, empty think block.

    Args:
        tokenizer: Holds the chat template.
        case: Whose instruction to use.
        text: The task's text.
    Returns:
        All that stands before the answer.
    """
    messages = [{"role": "system", "content": INSTRUCTIONS[case]}, {"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    return str(rendered)


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


@dataclass
class Progress:
    """Where a run stands; what a checkpoint needs besides the tensors."""

    step: int = 0
    chunk: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Sources:
    """Files that a run reads.

    Args:
        resume: Checkpoint to go on from; its recipe may differ in the schedule only.
        lexicon: File of demo/make_lexicon.
        start: Model folder to begin from, instead of from nothing.
    """

    resume: Path | None = None
    lexicon: Path | None = None
    start: Path | None = None


def read_lexicon(sources: Sources) -> Lexicon | None:
    """Read the lexicon of a run.

    Args:
        sources: Names its file, or none.
    Returns:
        The lexicon; it makes no ending of an organisation that is held out.
    Raises:
        LexiconError: The file is no lexicon.
    """
    return load_lexicon(sources.lexicon, word_list("held_out", "org_tails_zh")) if sources.lexicon else None


def load_start(folder: Path, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Read the weights that a run begins from.

    Args:
        folder: A model folder.
        recipe: Sizes that the model must have.
        tokenizer: Which the model must have been trained with.
    Returns:
        The model, in float32.
    Raises:
        StartError: It is no model folder, or of another tokenizer or size.
    """
    try:
        vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise StartError(f"--start {folder}: not a model folder ({error}).") from error
    if vocabulary != json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]:
        raise StartError(
            f"--start {folder}: its tokenizer is not that of this corpus, its weights mean other tokens. "
            "Train from nothing, or name a model that was trained with this version's words."
        )
    sizes = {
        "hidden_size": recipe.hidden,
        "num_hidden_layers": recipe.layers,
        "intermediate_size": recipe.feed_forward,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
    }
    for name, size in sizes.items():
        if config.get(name) != size:
            raise StartError(
                f"--start {folder}: {name} is {config.get(name)} there and {size} in the recipe."
            )
    # B615 is about downloads without a fixed revision; this is a local folder, and nothing is downloaded.
    model: Qwen3ForCausalLM = Qwen3ForCausalLM.from_pretrained(  # nosec B615
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return model.train()


class Trainer:
    """Train a model within a budget of CPU minutes, alone or with others of the same process group.

    Args:
        recipe: What to train, and for how long.
        out: Folder for checkpoints and the log.
        sources: Files to begin from.
        rank: Number of this process; the first one logs and saves.
    Raises:
        StartError: The weights or the checkpoint do not fit the recipe.
        LexiconError: The lexicon's file is none.
    """

    def __init__(self, recipe: Recipe, out: Path, sources: Sources | None = None, rank: int = 0) -> None:
        torch.set_num_threads(1)
        sources = sources or Sources()
        self.recipe = recipe
        self.out = out
        self.rank = rank
        self.tokenizer = tokenizer_of(recipe)
        self.lexicon = read_lexicon(sources)
        if sources.start:
            self.model = load_start(sources.start, recipe, self.tokenizer)
        else:
            self.model = new_model(recipe, self.tokenizer)
        self.progress = Progress()
        self.optimizers = self._make_optimizers()
        self._rates = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if sources.resume:
            self._resume(sources.resume)
        structure = [self.tokenizer.convert_tokens_to_ids(t) for t in self._structure_tokens()]
        self._structure = torch.tensor([*structure, self.tokenizer.eos_token_id])

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim < 2 or "embed" in n]
        recipe = self.recipe
        groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
        optimizers: list[torch.optim.Optimizer] = []
        if recipe.optimizer == "muon":
            muon = Muon(
                matrices,
                recipe.muon_rate,
                recipe.momentum,
                recipe.weight_decay,
                dtype=torch.bfloat16 if _HAS_BFLOAT16 else torch.float32,
                rank=self.rank,
                processes=recipe.processes,
            )
            optimizers.append(muon)
        else:
            groups.insert(0, {"params": matrices, "weight_decay": recipe.weight_decay})
        adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
        return [*optimizers, adamw]

    def _resume(self, checkpoint: Path) -> None:
        saved = torch.load(checkpoint, weights_only=True)
        states = saved.get("optimizers") or [saved["optimizer"]]
        if len(states) != len(self.optimizers):
            raise StartError(f"--resume {checkpoint}: of another optimizer than {self.recipe.optimizer}.")
        self.model.load_state_dict(saved["model"])
        self.average = saved["average"]
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        self.progress = Progress(**saved["progress"])

    def _structure_tokens(self) -> list[str]:
        pieces = json_pieces() if self.recipe.subject == "cases" else ['{"code":"', *code_pieces()]
        encoded = self.tokenizer.backend_tokenizer.encode_batch([*pieces, '"', "}"], add_special_tokens=False)
        return [one.tokens[0] for one in encoded]

    def _schedule(self) -> float:
        """Return the share of the full rate: warm up, stay, then fall linearly to 2 %."""
        share = self.progress.cpu_s / 60 / self.recipe.cpu_minutes
        fall = max(0.02, (1 - share) / self.recipe.decay_share)
        return min(1.0, (self.progress.step + 1) / self.recipe.warmup_steps, fall)

    def _tensors(self, batch: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        width = max(map(len, batch))
        inputs = torch.full((len(batch), width), self.tokenizer.pad_token_id)
        targets = torch.full((len(batch), width), _IGNORED)
        for index, row in enumerate(batch):
            inputs[index, : len(row)] = torch.tensor(row.prompt + row.answer)
            targets[index, len(row.prompt) - 1 : len(row) - 1] = torch.tensor(row.answer)
        # Which piece comes next, and with what a value begins, is where answers go wrong; copying on is easy.
        deciding = torch.isin(targets, self._structure)
        deciding[:, 1:] |= deciding[:, :-1].clone()
        weights = torch.where(deciding, self.recipe.structure_weight, 1.0) * (targets != _IGNORED)
        # A sentiment is one token, a complaint a hundred: by the token, short answers would not count.
        weights = weights / weights.sum(dim=1, keepdim=True).sqrt()
        return inputs, targets, weights

    def _step(self, batch: Sequence[Row]) -> tuple[float, float]:
        inputs, targets, weights = self._tensors(batch)
        answered = targets != _IGNORED
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=_HAS_BFLOAT16):
            states = self.model.model(input_ids=inputs, use_cache=False).last_hidden_state
            logits = self.model.lm_head(states[answered])
        wanted, weight = targets[answered], weights[answered]
        losses = F.cross_entropy(logits.float(), wanted, reduction="none")
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        if self.recipe.processes > 1:
            self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self._schedule()
            optimizer.step()
            optimizer.zero_grad()
        keep = min(self.recipe.ema, self.progress.step / (self.progress.step + 20))
        current = self.model.state_dict()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), [current[n] for n in self.average], 1 - keep)
        self.progress.tokens += inputs.numel()
        return loss.item(), (logits.argmax(-1) == wanted).float().mean().item()

    def _average_gradients(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([one.flatten() for one in gradients])
        dist.all_reduce(flat)
        flat /= self.recipe.processes
        for one, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            one.copy_(averaged.view_as(one))

    def _spent(self) -> float:
        """Tell the CPU seconds of all processes, the same number to each of them."""
        spent = torch.tensor(time.process_time() - self._cpu_start, dtype=torch.float64)
        if self.recipe.processes > 1:
            dist.all_reduce(spent)
        return float(spent)

    def run(self, checkpoint_minutes: float = 25.0) -> None:
        """Train to the end of the budget, with a checkpoint and dev figures now and then.

        Args:
            checkpoint_minutes: CPU minutes between checkpoints.
        """
        processes = self.recipe.processes
        self._cpu_start = time.process_time() - self.progress.cpu_s / processes
        wall_start = time.time() - self.progress.wall_s
        next_mark = (self.progress.cpu_s // 60 // checkpoint_minutes + 1) * checkpoint_minutes
        sums = [0.0, 0.0]
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        self._log(f"{size:.2f} M parameters, {asdict(self.recipe)}")
        batches = Batches(self.recipe, self.tokenizer, self.lexicon)
        for chunk, batch in batches.stream(self.progress.chunk + self.rank, processes):
            self.progress.cpu_s = self._spent()
            self.progress.wall_s = time.time() - wall_start
            if self.progress.cpu_s / 60 >= self.recipe.cpu_minutes:
                break
            if self.progress.cpu_s / 60 >= next_mark:
                pause = time.process_time()
                self.checkpoint(f"{next_mark:05.1f}")
                self._cpu_start += time.process_time() - pause
                next_mark += checkpoint_minutes
            loss, accuracy = self._step(batch)
            self.progress.chunk = chunk + processes - self.rank
            self.progress.step += 1
            sums = [sums[0] + loss / 50, sums[1] + accuracy / 50]
            if self.progress.step % 50 == 0:
                tokens = self.progress.tokens * processes
                self._log(
                    f"step {self.progress.step} cpu {self.progress.cpu_s / 60:.1f} min wall "
                    f"{self.progress.wall_s / 60:.1f} min {tokens / 1e6:.2f} M tokens "
                    f"loss {sums[0]:.4f} accuracy {sums[1]:.4f} rate {self._schedule():.3f}"
                )
                sums = [0.0, 0.0]
        self.checkpoint("final")

    def _log(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)

    def checkpoint(self, mark: str) -> None:
        """Save the run and its averaged model, and measure the latter on a dev draw.

        Args:
            mark: Name of the checkpoint.
        """
        if self.rank:
            return  # the others wait for the first one's next gradients
        averaged = copy.deepcopy(self.model)
        averaged.load_state_dict(self.average)
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [one.state_dict() for one in self.optimizers],
            "progress": asdict(self.progress),
        }
        torch.save(state, self.out / "checkpoint.partial")
        (self.out / "checkpoint.partial").rename(self.out / f"checkpoint-{mark}.pt")
        save_model(averaged, self.tokenizer, self.out / f"model-{mark}")
        torch.set_num_threads(self.recipe.processes)
        for subject, figures in self._dev_figures(averaged):
            shown = {name: round(value, 3) for name, value in figures.items()}
            self._log(f"== {mark} dev {subject} {json.dumps(shown)}")
        torch.set_num_threads(1)

    def _dev_figures(self, model: Qwen3ForCausalLM) -> Iterator[tuple[str, dict[str, float]]]:
        if self.recipe.subject == "cases":
            for case, count in zip(CASES, (64, 48, 48, 32), strict=True):
                texts = list(generate(case, "validation", count, _DEV_SEED, lexicon=self.lexicon))
                yield case, score(case, texts, answer(model, self.tokenizer, case, texts))
            return
        # Nothing runs here: a program that is written as the corpus writes it is right, others may be, too.
        # Turns that follow a traceback are counted apart.
        drawn = list(conversations("held_out", self.recipe.dev_programs, _DEV_SEED))
        for subject, turns in (("programs", 2), ("mended programs", 4)):
            asked = [(messages, right) for messages, right in drawn if len(messages) == turns]
            prompts = [
                self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, enable_thinking=False, tokenize=False
                )
                for messages, _ in asked
            ]
            written = complete(model, self.tokenizer, prompts)
            same = sum(text == right for text, (_, right) in zip(written, asked, strict=True))
            yield subject, {"count": len(asked), "exact": same / max(1, len(asked))}


def _worker(rank: int, recipe: Recipe, out: Path, sources: Sources, meeting: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=meeting.as_uri(),
        rank=rank,
        world_size=recipe.processes,
        timeout=timedelta(hours=1),
    )
    Trainer(recipe, out, sources, rank).run()
    dist.destroy_process_group()


def train(recipe: Recipe, out: Path, sources: Sources | None = None) -> None:
    """Train in as many processes as the recipe names.

    Args:
        recipe: What to train, and for how long.
        out: Folder for checkpoints, models and nothing else; made if needed.
        sources: Files to begin from.
    Raises:
        StartError: The weights to begin from do not fit the recipe.
        LexiconError: The lexicon's file is none.
        torch.multiprocessing.ProcessRaisedException: One of them failed.
    """
    sources = sources or Sources()
    read_lexicon(sources)  # here, too, so that what does not fit ends in one sentence
    if sources.start:
        load_start(sources.start, recipe, tokenizer_of(recipe))
    out.mkdir(parents=True, exist_ok=True)
    if recipe.processes == 1:
        Trainer(recipe, out, sources).run()
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        torch.multiprocessing.spawn(_worker, (recipe, out, sources, meeting), nprocs=recipe.processes)


def answer(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, case: str, texts: Sequence[Generated]
) -> list[str]:
    """Answer greedily, without a grammar; cheap enough to run between checkpoints.

    Args:
        model: In float32.
        tokenizer: Of that model.
        case: Whose instruction to use.
        texts: What to answer.
    Returns:
        Answers in the order of the texts.
    """
    return complete(model, tokenizer, [prompt_text(tokenizer, case, one.text) for one in texts])


@torch.no_grad()
def complete(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> list[str]:
    """Complete rendered prompts greedily, without a grammar.

    Args:
        model: In float32.
        tokenizer: Of that model.
        prompts: Up to where the answer begins.
    Returns:
        Answers in the order of the prompts.
    """
    if not prompts:
        return []
    model.eval()
    tokenizer = copy.deepcopy(tokenizer)  # padding stays switched on in it, and rows would come padded
    tokenizer.padding_side = "left"
    encoded = tokenizer(list(prompts), return_tensors="pt", padding=True, return_token_type_ids=False)
    written = model.generate(
        **encoded,
        max_new_tokens=240,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    width = encoded["input_ids"].shape[1]
    model.train()
    return [str(tokenizer.decode(row[width:], skip_special_tokens=True)) for row in written]


def save_model(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder that transformers, TRL and vLLM read, in bfloat16.

    Args:
        model: Any precision; not changed.
        tokenizer: Written beside it.
        folder: Made if needed.
    """
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    # transformers 4 looks for these two under their old names.
    config |= {"rope_theta": _ROPE_THETA, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    about: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    about["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("is_local", "local_files_only", "backend", "chat_template"):
        about.pop(name, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    (folder / "chat_template.jinja").write_text(str(tokenizer.chat_template), encoding="utf-8")
    ends = {
        "do_sample": False,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors come out readable by their owner only
