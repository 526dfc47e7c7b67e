"""Train an embedded model on the corpus: loop, checkpoints, dev figures.

Knows PyTorch; the texts come from `demo.corpus`, the batches from `batches`, the model from `model`, the
figures from `evaluation`. One process per core, each with its own texts and one thread, with the gradients
averaged after every step: at this size half as much again as one process with two threads. The time limit is
CPU time of all of them, so that a busy machine changes the hours, not the model.
"""

import copy
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import Qwen3ForCausalLM

from demo.corpus import CASES, Lexicon, generate, load_lexicon
from demo.corpus.code_failures import conversations
from demo.corpus.words import word_list
from demo.training.batches import Batches, Row
from demo.training.evaluation import score
from demo.training.model import (
    Recipe,
    StartError,
    answer,
    complete,
    load_start,
    new_model,
    save_model,
    tokenizer_of,
)
from demo.training.muon import Muon
from demo.training.tokenizer import code_pieces, json_pieces

_DEV_SEED = 1_000_003  # figures of the model card are drawn with other seeds
_IGNORED = -100
# Without AVX-512 a step in bfloat16 takes fourteen times as long as one in float32.
_HAS_BFLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
        """Return the CPU seconds of all processes together; every process gets the same number."""
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
