import torch

from data.feed import feed

CPU = torch.device("cpu")


def test_batches_come_in_order_as_latents():
    batches = [(torch.full((2, 1), float(k)), torch.tensor([k, k])) for k in range(4)]
    fed = list(feed(iter(batches), lambda data: data * 10, CPU))
    assert [x[0].item() for x, _ in fed] == [0, 10, 20, 30] and [y[0].item() for _, y in fed] == [0, 1, 2, 3]


def test_a_batch_is_encoded_when_it_is_asked_for():
    """Random numbers of the encoder belong to the step, whose seed is set before."""
    calls = []
    batches = feed(iter([(torch.zeros(1), torch.zeros(1))] * 3), lambda data: calls.append(1) or data, CPU)
    assert calls == []
    next(batches)
    assert calls == [1]
