"""One rank of a gloo group, `main(folder, rank, world, step)`, on what the test wrote there.

With a step rank 0 dies at its end, and the others with it. What each rank's model is at the end,
buffers that are never saved included, is left in `end-<rank>.pt`.
"""

import os
from datetime import timedelta

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.events.blocks import BlockStore
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import parse
from ehr_ray.registry import get_family
from ehr_ray.train.backend import begin_sum, sent_once
from ehr_ray.train.loader import Loader
from ehr_ray.train.loop import train
from ehr_ray.train.report import Watch
from ehr_ray.train.sharding import sharded, whole


class GlooBackend:
    device = torch.device("cpu")

    def __init__(self, rank, world, strategy):
        self.rank, self.world, self.strategy = rank, world, strategy

    def wrap(self, model):
        self.model = model
        if self.strategy == "fsdp":
            return sharded(model, self.device)
        return sent_once(DistributedDataParallel(model, gradient_as_bucket_view=True))

    def all_sum(self, values):
        return self.begin_sum(values)()

    def begin_sum(self, values):
        return begin_sum(values)

    def report(self, metrics):
        """Nobody listens."""


def main(folder, rank, world, last=None):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    experiment = parse(read_yaml(folder / "experiment.yaml"))
    family = get_family(experiment.family)
    vocabulary = Vocabulary.from_table(pq.read_table(folder / "vocabulary.parquet"))
    loader = Loader(
        train=BlockStore([folder / "train.arrow"]),
        tuning=BlockStore([folder / "tuning.arrow"]),
        collate=lambda rows: family.collate(rows, experiment.model),
        config=experiment.data,
        seed=experiment.seed,
        accumulate=experiment.train.accumulate,
    )
    backend = GlooBackend(rank, world, experiment.cluster.strategy)

    def on_step(step, _total):
        if step == last:
            os._exit(9)

    train(experiment, family, vocabulary, loader, backend, folder / "run", Watch(on_step))
    with whole(backend.model) as model:
        named = [*model.named_parameters(), *model.named_buffers()]
        torch.save({name: tensor.detach() for name, tensor in named}, folder / f"end-{rank}.pt")
