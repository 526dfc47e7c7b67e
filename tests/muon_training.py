"""Check Muon, the start from a model folder and the resumed run; run in the environment `train`.

    python tests/muon_training.py FOLDER

The update is near orthogonal, two processes make the same one, and what does not fit is refused.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from demo.training.model import Recipe, StartError, load_start, save_model, tokenizer_of
from demo.training.muon import Muon, orthogonalize
from demo.training.trainer import Sources, Trainer

SHAPES = ((64, 64), (32, 64), (128, 64), (64, 64), (64, 64))
RECIPE = replace(Recipe(), layers=2, feed_forward=64, processes=1, chunk_texts=24)


def check(name: str, *, holds: bool) -> None:
    if not holds:
        sys.exit(f"not so: {name}")


def is_refused(call: Callable[[], object], words: str) -> bool:
    try:
        call()
    except StartError as error:
        return words in str(error)
    return False


def updated(rank: int, processes: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(*shape)) for shape in SHAPES]
    muon = Muon(matrices, rank=rank, processes=processes)
    for _ in range(3):
        for one in matrices:
            one.grad = torch.randn_like(one)
        muon.step()
    return [one.detach() for one in matrices]


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(updated(rank, 2), f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


def main(folder: Path) -> None:
    torch.manual_seed(1)
    for shape in ((256, 256), (512, 256), (128, 256)):
        for dtype in (torch.float32, torch.bfloat16):
            values = torch.linalg.svdvals(orthogonalize(torch.randn(3, *shape), dtype).float())
            # A square random matrix has singular values near 0, which five steps cannot all lift.
            low = torch.quantile(values, 0.02 if shape[0] == shape[1] else 0.0)
            check(f"singular values of {shape} near 1", holds=bool(low > 0.65 and values.max() < 1.3))

    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=2)
    first, second = (torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    same = all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    check("two processes make the same update", holds=same)
    near = all(torch.allclose(one, two, atol=1e-4) for one, two in zip(first, updated(0, 1), strict=True))
    check("two processes make the update of one", holds=near)

    tokenizer = tokenizer_of(RECIPE)
    trainer = Trainer(RECIPE, folder)
    save_model(trainer.model, tokenizer, folder / "model")
    load_start(folder / "model", RECIPE, tokenizer)
    check(
        "an absent folder is refused",
        holds=is_refused(lambda: load_start(folder, RECIPE, tokenizer), "not a"),
    )
    larger = replace(RECIPE, feed_forward=128)
    check(
        "another size is refused",
        holds=is_refused(lambda: load_start(folder / "model", larger, tokenizer), "intermediate_size"),
    )
    written = json.loads((folder / "model" / "tokenizer.json").read_text())
    written["model"]["vocab"].popitem()
    (folder / "model" / "tokenizer.json").write_text(json.dumps(written))
    check(
        "another tokenizer is refused",
        holds=is_refused(lambda: load_start(folder / "model", RECIPE, tokenizer), "tokenizer"),
    )

    torch.save(
        {
            "model": trainer.model.state_dict(),
            "average": trainer.average,
            "optimizers": [one.state_dict() for one in trainer.optimizers],
            "progress": {"step": 7},
        },
        folder / "checkpoint.pt",
    )
    resumed = Trainer(RECIPE, folder, Sources(resume=folder / "checkpoint.pt"))
    check("a run is resumed", holds=resumed.progress.step == 7)
    other = replace(RECIPE, optimizer="adamw")
    resume = Sources(resume=folder / "checkpoint.pt")
    check(
        "a checkpoint of another optimizer is refused",
        holds=is_refused(lambda: Trainer(other, folder, resume), "optimizer"),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
