import pytest

from data.order import BatchOrder
from runtime.errors import DataError


def batches(order, count):
    return [batch for batch, _ in zip(order, range(count), strict=False)]


def test_the_global_order_does_not_depend_on_the_number_of_processes():
    one = batches(BatchOrder(103, 12, 0, 1, seed=5), 20)
    for world_size in (2, 3, 4):
        shares = [batches(BatchOrder(103, 12, rank, world_size, seed=5), 20) for rank in range(world_size)]
        assert [[key for part in parts for key in part] for parts in zip(*shares, strict=True)] == one


def test_an_order_started_later_is_the_rest_of_the_order():
    whole = batches(BatchOrder(50, 8, 0, 1, seed=1), 30)
    for start in (1, 5, 6, 7, 18):  # six steps an epoch
        assert batches(BatchOrder(50, 8, 0, 1, seed=1, start_step=start), 30 - start) == whole[start:]


def test_another_batch_size_goes_on_from_the_image():
    """Every image of the epoch that is begun comes once; then whole epochs, as if it had always been so."""
    before = BatchOrder(100, 16, 0, 1, seed=4)
    visited = [key for batch in batches(before, 8) for key in batch][96:]  # six steps an epoch; two of the second
    after = BatchOrder(100, 5, 0, 1, seed=4, start_step=8, start=before.images(8))
    rest = batches(after, 14 + 20)
    epoch = visited + [key for batch in rest[:13] for key in batch]
    assert sorted(k for k, _ in epoch) == sorted({k for k, _ in epoch}) and len(epoch) == 97
    third = BatchOrder(100, 5, 0, 1, seed=4, start_step=40)  # 20 steps an epoch
    assert rest[13:] == batches(third, 21)
    assert [after.images(8 + k) for k in (0, 1, 13, 14, 33)] == [132, 137, 200, 205, 300]


@pytest.mark.parametrize("batch_size", [1, 7, 16, 33, 100])
@pytest.mark.parametrize("steps", [0, 3, 6, 20])
def test_passes_over_the_data_are_counted_whatever_the_batch_size(batch_size, steps):
    """The last step of epoch 5 is the last whose images are of it; images never go backwards."""
    before = BatchOrder(100, 16, 0, 1, seed=4)
    order = BatchOrder(100, batch_size, 0, 1, seed=4, start_step=steps, start=before.images(steps))
    last = order.last_step(5)
    assert order.images(last - 1) < 500 == order.images(last)
    counts = [order.images(k) for k in range(steps, last + 1)]
    assert counts == sorted(set(counts)) and counts[0] >= before.images(steps)
    assert BatchOrder(100, 16, 0, 1, seed=4, start_step=steps).last_step(5) == 30


def test_without_mirroring_the_order_stays():
    plain, mirrored = (batches(BatchOrder(50, 8, 0, 1, seed=1, flip=flip), 30) for flip in (False, True))
    assert [[(k, False) for k, _ in batch] for batch in mirrored] == plain != mirrored


def test_an_epoch_visits_every_image_once_and_epochs_differ():
    order = BatchOrder(48, 8, 0, 1, seed=2)
    epochs = [[i for b in batches(order, 12)[6 * e : 6 * e + 6] for i, _ in b] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(48)) and epochs[0] != epochs[1]
    assert [i for b in batches(BatchOrder(48, 8, 0, 1, seed=3), 6) for i, _ in b] != epochs[0]
    mirrored = [m for b in batches(order, 600) for _, m in b]
    assert 0.45 < sum(mirrored) / len(mirrored) < 0.55


def test_fewer_images_than_a_batch():
    with pytest.raises(DataError, match="5 samples, fewer than one global batch of 8"):
        BatchOrder(5, 8, 0, 1, seed=0)
