#!/usr/bin/env bash
# torchdata 0.11.0 (with torch 2.13.0): a StatefulDataLoader around torch's own RandomSampler resumes the first epoch
# exactly, and every later one with an order that no uninterrupted run has.
#
# StatefulDataLoader is made for checkpoints: state_dict() in the middle of an epoch, load_state_dict() in a new process.
# Tried in its first epoch, as one tests it, it continues to the letter with torch.utils.data.RandomSampler and a seeded
# generator. In the second epoch the state holds no more than the number of samples drawn: the new process takes its
# generator from the start, so the rest of the second epoch is the rest of another permutation. Some rows come twice in
# that epoch and others never; nothing is said. With torchdata.stateful_dataloader.sampler.RandomSampler, of the same
# name and arguments, both epochs are resumed exactly.
#
# Seen: torch.utils.data.sampler: epoch 1 resumed exactly True
#       torch.utils.data.sampler: epoch 2 resumed exactly False
#       torchdata: epoch 1 resumed exactly True
#       torchdata: epoch 2 resumed exactly True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 torchdata==0.11.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
import torchdata.stateful_dataloader.sampler
from torch.utils.data import RandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader


def loader(sampler):
    rows = list(range(10))
    return StatefulDataLoader(rows, batch_size=2, sampler=sampler(rows, generator=torch.Generator().manual_seed(1)))


def batches(of):
    return [batch.tolist() for batch in of]


exact = {}
for sampler in (RandomSampler, torchdata.stateful_dataloader.sampler.RandomSampler):
    for epoch in (1, 2):
        whole = loader(sampler)
        for _ in range(epoch - 1):
            batches(whole)
        expected = batches(whole)
        stopped = loader(sampler)
        for _ in range(epoch - 1):
            batches(stopped)
        parts = iter(stopped)
        seen = [next(parts).tolist() for _ in range(2)]
        resumed = loader(sampler)
        resumed.load_state_dict(stopped.state_dict())
        exact[sampler.__module__.split(".stateful")[0], epoch] = seen + batches(resumed) == expected
for (module, epoch), same in exact.items():
    print(f"{module}: epoch {epoch} resumed exactly {same}")
assert list(exact.values()) == [True, False, True, True]
PYTHON
