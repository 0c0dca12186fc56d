from itertools import chain

from anomaly3d.data.sampler import StepSampler


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
