"""Images a second of plain DistributedDataParallel on gloo: the loop that one writes without a platform.

    torchrun --nproc-per-node 2 tests/benchmarks/bare_ddp.py <stage as JSON> <file for the rates>

Model, data and samples are the stage's, and so are optimizer, clipping and threads.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from benchmarks.rates import WINDOW
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from scalablevit.config.recipe import Stage
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.loader import build_loader, collate_classification
from scalablevit.data.mixing import normalize
from scalablevit.data.sampler import TrainBatches, TrainOrder
from scalablevit.data.sources.opening import open_source
from scalablevit.models.backbone import build_classifier


def main() -> int:
    stage = Stage.model_validate_json(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    torch.manual_seed(stage.training.seed)
    dist.init_process_group("gloo")
    rates = train(stage, dist.get_rank(), dist.get_world_size())
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps({"rates": rates}))
    dist.destroy_process_group()
    return 0


def train(stage: Stage, rank: int, world: int) -> list[float]:
    """Images a second, over all ranks, of each window of steps after the first."""
    data, training = stage.data, stage.training
    source = open_source(data, "train", Path("/"))
    batches = TrainBatches(
        TrainOrder(len(source), 1, training.seed), global_batch_size=training.global_batch_size, accumulation_steps=1,
        rank=rank, world=world, first_step=0, end_step=training.steps,
    )  # fmt: skip
    samples = SampleDataset(source, data, training.seed, train=True)
    loader = build_loader(samples, batches, collate_classification, workers=0, device=torch.device("cpu"))
    model = DistributedDataParallel(build_classifier(stage.model.name, len(source.classes)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.optimizer.lr, weight_decay=stage.optimizer.weight_decay)
    rates, since = [], time.perf_counter()
    for step, batch in enumerate(loader, 1):
        images = normalize(batch.images, data.mean, data.std)
        functional.cross_entropy(model(images), batch.labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), stage.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step % WINDOW == 0:
            now = time.perf_counter()
            rates.append(WINDOW * training.global_batch_size / (now - since))
            since = now
    return rates[1:]


if __name__ == "__main__":
    sys.exit(main())
