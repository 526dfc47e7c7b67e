"""Train an adapter: supervised on rows, then, if wanted, on pairs of draft and correction.

The only file that imports torch, TRL, PEFT and Transformers. Rows come as tokens, so that no trainer's own
templates change them. A run that was stopped or killed goes on from its last whole checkpoint.
"""

import errno
import logging
import math
import platform
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import accelerate
import datasets
import numpy as np
import psutil
import torch
import torch.distributed as dist
import transformers
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.integrations import SwanLabCallback, TensorBoardCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from draftloop.errors import DraftloopError, ServiceError, SetupError
from draftloop.support.progress import Progress
from draftloop.training.base import Base
from draftloop.training.recipe import Recipe
from draftloop.training.rows import Corpus, Row
from draftloop.training.runs import ADAPTER, Run, last_checkpoint, mark, marked

Stage = Literal["sft", "dpo"]
_IGNORED = -100  # of labels: no loss here
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# What torch and safetensors say, whose errors have no number.
_FULL_WORDS = ("No space left", "File too large", "PytorchStreamWriter", "Disk quota", "Input/output error")
_NO_MEMORY = "can't allocate memory"  # what torch says on the CPU


@dataclass(frozen=True)
class Fitted:
    """What came of it.

    adapter    the last stage's
    losses     of every step
    held_out   how many rows the dataset holds out, and the mean loss on them of base model and adapter
    seconds    time of all runs of the processes
    """

    adapter: Path
    losses: list[dict[str, Any]]
    held_out: dict[str, Any]
    seconds: float


class Group:
    """The processes that train together; one where torchrun or accelerate started no others."""

    def __init__(self) -> None:
        """Join it."""
        self.has_gpu = torch.cuda.is_available()
        state = accelerate.PartialState(cpu=not self.has_gpu)  # on CPUs: gloo
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        if self.size == 1 and self.has_gpu and torch.cuda.device_count() > 1:
            raise SetupError(
                f"This machine shows {torch.cuda.device_count()} GPUs to one process.",
                hint="Start it with torchrun (docs/how-to/train.md), or set CUDA_VISIBLE_DEVICES=0.",
            )

    def first(self, do: Callable[[], Any]) -> Any:
        """Do something in the first process alone; all get what it gives, or its error.

        Raises:
            DraftloopError: What the first one raised.
        """
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = do()
            except DraftloopError as error:
                told[1] = error
        if self.size > 1:
            dist.broadcast_object_list(told)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def any(self, here: bool, device: Any) -> bool:  # noqa: FBT001  one value is the whole message
        """Tell whether it is so in any of the processes."""
        if self.size == 1:
            return here
        flag = torch.tensor(int(here), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def leave(self) -> None:
        """End the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def surroundings(group: Group) -> dict[str, Any]:
    """Tell versions and hardware, for the run's manifest."""
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "processes": group.size,
    }
    if group.has_gpu:
        hardware["gpu"] = torch.cuda.get_device_name()
        hardware["cuda"] = torch.version.cuda
    versions = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    return {"versions": versions, "hardware": hardware}


def fit(
    run: Run, corpus: Corpus, recipe: Recipe, base: Base, group: Group, progress: Progress
) -> Fitted | None:
    """Train all stages, going on where an earlier process stopped.

    Args:
        run: Whose folder takes checkpoints and adapters.
        corpus: What is trained; with pairs there is a second stage.
        recipe: How.
        base: On which model.
        group: The processes.
        progress: Shows the steps of each stage.
    Returns:
        None where a signal stopped it; then the last step is in a checkpoint.
    Raises:
        SetupError: The recipe does not fit the model, or the loss is no number.
        ServiceError: The disk is full, or the memory.
    """
    _quiet()
    losses: list[dict[str, Any]] = []
    held_out: dict[str, Any] = {}
    seconds, before = 0.0, None
    stages: tuple[Stage, ...] = ("sft", "dpo") if corpus.pairs else ("sft",)
    for stage in stages:
        done = marked(run.stage(stage) / ADAPTER)
        if done is None:
            with _words(recipe):
                done = _Stage(stage, run, recipe, base, group).train(corpus, before, progress)
            if done is None:
                return None
        losses += done["losses"]
        seconds += done["seconds"]
        held_out = done["held_out"]
        before = run.stage(stage) / ADAPTER
    if before is None:
        raise AssertionError("there is a first stage")
    return Fitted(before, losses, held_out, round(seconds, 1))


class _Stage:
    """One stage of a run."""

    def __init__(self, name: Stage, run: Run, recipe: Recipe, base: Base, group: Group) -> None:
        self._name, self._run, self._recipe, self._base, self._group = name, run, recipe, base, group
        self._folder = run.stage(name)

    def train(self, corpus: Corpus, before: Path | None, progress: Progress) -> dict[str, Any] | None:
        """Train to the end or to a signal; gives what the stage says of itself, None if stopped."""
        self._group.first(lambda: last_checkpoint(self._folder))  # removes what was cut short
        checkpoint = last_checkpoint(self._folder)
        earlier_s = (marked(checkpoint) or {}).get("seconds", 0.0) if checkpoint else 0.0
        watch = _Watch(self._name, self._group, earlier_s, progress)
        trainer = self._trainer(corpus, before, [watch, *self._tracking()])
        trainer.remove_callback(PrinterCallback)
        with watch.catching_signals():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if watch.stopped:
            return None
        losses = [
            {"stage": self._name, "step": entry["step"], "loss": entry["loss"]}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
        if not all(math.isfinite(entry["loss"]) for entry in losses):
            raise SetupError(
                f"The loss of the stage {self._name} became no number.",
                hint="Lower learning_rate, or set precision to float32.",
            )

        def keep() -> dict[str, Any]:
            model = trainer.accelerator.unwrap_model(trainer.model)
            model.save_pretrained(self._folder / ADAPTER, selected_adapters=["default"])
            whole = {"losses": losses, "seconds": watch.seconds, "held_out": _look(model, corpus.tests)}
            mark(self._folder / ADAPTER, whole)
            return whole

        kept: dict[str, Any] = self._group.first(keep)
        return kept

    def _trainer(self, corpus: Corpus, before: Path | None, callbacks: list[Any]) -> Any:
        # B615 is about a hub without a fixed revision; this is a local folder, and nothing is fetched.
        tokenizer = AutoTokenizer.from_pretrained(self._base.folder, local_files_only=True)  # nosec B615
        model = AutoModelForCausalLM.from_pretrained(  # nosec B615
            self._base.folder, dtype=getattr(torch, self._precision()), local_files_only=True
        )
        recipe = self._recipe
        if before is None:
            adapter = LoraConfig(
                r=recipe.r,
                lora_alpha=recipe.alpha,
                lora_dropout=recipe.dropout,
                target_modules=list(recipe.layers),
                bias="none",
                task_type="CAUSAL_LM",
            )
            arguments = SFTConfig(
                **self._arguments(recipe.epochs, recipe.learning_rate),
                dataset_kwargs={"skip_prepare_dataset": True},
            )
            return SFTTrainer(
                model,
                arguments,
                train_dataset=_rows(corpus),
                processing_class=tokenizer,
                peft_config=adapter,
                callbacks=callbacks,
            )
        arguments = DPOConfig(
            **self._arguments(recipe.dpo_epochs, recipe.dpo_learning_rate), beta=recipe.dpo_beta
        )
        return _PairsTrainer(
            PeftModel.from_pretrained(model, before, is_trainable=True),
            args=arguments,
            train_dataset=_pairs(corpus),
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    def _arguments(self, epochs: float, learning_rate: float) -> dict[str, Any]:
        recipe, has_gpu = self._recipe, self._group.has_gpu
        return {
            "output_dir": str(self._folder),
            "per_device_train_batch_size": recipe.batch_rows,
            "gradient_accumulation_steps": recipe.accumulation,
            "num_train_epochs": epochs,
            "learning_rate": learning_rate,
            "lr_scheduler_type": recipe.schedule,
            "warmup_steps": recipe.warmup_share,  # below 1 it is a share
            "weight_decay": recipe.weight_decay,
            "max_grad_norm": recipe.max_grad_norm,
            "max_length": None,  # rows that are too long are left out before
            "seed": recipe.seed,
            "data_seed": recipe.seed,
            "bf16": self._precision() == "bfloat16",
            "fp16": self._precision() == "float16",
            "gradient_checkpointing": recipe.gradient_checkpointing,
            "use_cpu": not has_gpu,
            "dataloader_pin_memory": has_gpu,
            # A second stage holds the first one's adapter too, which gets no gradients.
            "ddp_find_unused_parameters": self._name == "dpo",
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_steps": recipe.checkpoint_steps,
            "save_total_limit": 2,  # the one before stays until the next one is whole
            "report_to": "none",
            "disable_tqdm": True,
        }

    def _precision(self) -> str:
        if self._recipe.precision != "auto":
            return self._recipe.precision
        if not self._group.has_gpu:
            return "float32"
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"

    def _tracking(self) -> list[Any]:
        folder = self._run.stage("tracking") / self._name
        if self._recipe.tracking == "none" or self._group.rank:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        # Loaded where wanted: they take seconds, and SwanLab begins to look around.
        if self._recipe.tracking == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

            return [TensorBoardCallback(SummaryWriter(log_dir=str(folder)))]
        import swanlab  # noqa: PLC0415

        # By itself the callback would ask for a login; in local mode nothing leaves the machine.
        swanlab.init(
            project="draftloop",
            experiment_name=f"{self._run.out.name}-{self._name}",
            mode="local",
            logdir=str(folder),
        )
        return [SwanLabCallback()]


class _PairsTrainer(DPOTrainer):
    """A trainer of pairs that are tokens already; by itself TRL 1.16 renders them anew."""

    def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
        return dataset


class _Watch(TrainerCallback):
    """Tells progress, ends a run at a signal, and marks checkpoints that are whole."""

    def __init__(self, stage: Stage, group: Group, earlier_s: float, progress: Progress) -> None:
        self._stage, self._group, self._progress = stage, group, progress
        self._earlier_s, self._began = earlier_s, time.monotonic()
        self._asked = self.stopped = False

    @property
    def seconds(self) -> float:
        """Time of the stage, that of earlier processes included."""
        return round(self._earlier_s + time.monotonic() - self._began, 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Begin to count."""
        self._began = time.monotonic()
        self._progress.begin(self._stage, state.max_steps, done=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Tell the step; at a signal, save and end."""
        self._progress.advance()
        if self._group.any(self._asked, args.device) and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Mark the checkpoint: everything is written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._group.size > 1:
            dist.barrier()  # every process writes its own part
        if self._group.rank == 0:
            mark(folder, {"seconds": self.seconds})

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM; the second one of a kind ends at once, as it does elsewhere.

        torchrun passes a Ctrl-C on as a SIGTERM, after the terminal's own SIGINT: one wish, two signals.
        """
        seen: set[int] = set()

        def note(number: int, _: FrameType | None) -> None:
            if number in seen:
                raise KeyboardInterrupt
            seen.add(number)
            self._asked = True

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _rows(corpus: Corpus) -> Any:
    inputs, labels = [], []
    for row in corpus.rows:
        ids = np.array(row.ids)
        wanted = np.full_like(ids, _IGNORED)
        wanted[row.start : row.end] = ids[row.start : row.end]
        inputs.append(ids)
        labels.append(wanted)
    return datasets.Dataset.from_dict({"input_ids": inputs, "labels": labels})


def _pairs(corpus: Corpus) -> Any:
    return datasets.Dataset.from_dict(
        {
            f"{name}_ids": [np.array(getattr(pair, name)) for pair in corpus.pairs]
            for name in ("prompt", "chosen", "rejected")
        }
    )


def _look(model: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Give the mean loss of the answers' tokens, without the adapter and with it."""
    if not rows:
        return {"rows": 0, "base_loss": None, "loss": None}
    model.eval()
    with model.disable_adapter():
        base_loss = _mean_loss(model, rows)
    return {"rows": len(rows), "base_loss": base_loss, "loss": _mean_loss(model, rows)}


@torch.no_grad()
def _mean_loss(model: Any, rows: Sequence[Row]) -> float:
    total = 0.0
    for row in rows:
        ids = torch.tensor([list(row.ids[: row.end])], device=model.device)
        said = model(ids, logits_to_keep=row.end - row.start + 1).logits[0, :-1]
        total += cross_entropy(said.float(), ids[0, row.start :], reduction="sum").item()
    return total / sum(row.end - row.start for row in rows)


@contextmanager
def _words(recipe: Recipe) -> Iterator[None]:
    """Say in words what libraries raise where the machine or the recipe is at fault."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        words = _chain(error)
        if isinstance(error, torch.OutOfMemoryError) or any(_NO_MEMORY in text for _, text in words):
            raise ServiceError(
                f"The memory is too small for {recipe.batch_rows} rows of {recipe.max_tokens} tokens.",
                hint="Halve batch_rows, double accumulation, and begin anew.",
            ) from error
        if any(number in _FULL for number, _ in words) or any(
            part in text for part in _FULL_WORDS for _, text in words
        ):
            raise ServiceError(
                "A checkpoint cannot be written: the disk is full.",
                hint="Make room, then go on with --resume.",
            ) from error
        if "arget modules" in str(error):
            raise SetupError(
                f"The base model has none of the layers {', '.join(recipe.layers)}.",
                hint="Name its linear layers in `layers`.",
            ) from error
        raise


def _chain(error: BaseException) -> Sequence[tuple[int | None, str]]:
    found = []
    inner: BaseException | None = error
    while inner is not None:
        found.append((getattr(inner, "errno", None), str(inner)))
        inner = inner.__cause__ or inner.__context__
    return found


def _quiet() -> None:
    """Leave out what libraries say about themselves; errors stay."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
