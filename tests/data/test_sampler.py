from itertools import chain

import torch

from anomaly3d.data.sampler import StepSampler, dealt


def test_every_scan_is_seen_equally_often():
    seen = list(chain.from_iterable(StepSampler(scans=5, batch=2, steps=10, seed=3)))
    assert sorted(scan for scan, _ in seen) == sorted(list(range(5)) * 4)
    assert [place for _, place in seen] == list(range(20))


def test_epochs_continue_one_stream():
    whole = list(StepSampler(7, 3, 8, seed=1))
    parts = []
    for epoch in range(4):
        sampler = StepSampler(7, 3, 2, seed=1)
        sampler.set_epoch(epoch)
        parts += list(sampler)
    assert parts == whole


def test_processes_share_the_stream_of_one_with_a_larger_batch():
    one = list(StepSampler(9, 4, 5, seed=2))
    two = [list(StepSampler(9, 2, 5, seed=2, rank=r, world=2)) for r in range(2)]
    assert [a + b for a, b in zip(*two, strict=True)] == one


def test_what_is_drawn_for_a_volume_does_not_depend_on_the_number_of_processes(monkeypatch):
    def drawn(rank, world):
        monkeypatch.setattr("anomaly3d.data.sampler.place", lambda: (rank, world))
        generator = torch.Generator().manual_seed(1)
        return dealt(lambda volumes: torch.randn(volumes, 5, generator=generator), 4 // world)

    one = drawn(0, 1)
    assert one.shape == (4, 5)
    assert torch.equal(torch.cat([drawn(0, 2), drawn(1, 2)]), one)
    assert torch.equal(torch.cat([drawn(rank, 4) for rank in range(4)]), one)
