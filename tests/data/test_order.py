import pytest

from data.order import BatchOrder


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


@pytest.mark.parametrize(("length", "batch_size"), [(5, 8), (5, 256), (1, 4), (7, 8)])
def test_a_batch_of_a_small_set_takes_several_epochs_one_behind_the_other(length, batch_size):
    steps = 2 * length
    keys = [key for batch in batches(BatchOrder(length, batch_size, 0, 1, seed=3), steps) for key in batch]
    assert len(keys) == steps * batch_size
    epochs = [[i for i, _ in keys[k : k + length]] for k in range(0, len(keys), length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    assert length == 1 or len(set(map(tuple, epochs))) > 1
    shares = [batches(BatchOrder(length, batch_size, rank, 4, seed=3), steps) for rank in range(4)]
    assert [key for parts in zip(*shares, strict=True) for part in parts for key in part] == keys


@pytest.mark.parametrize("batch_size", [3, 8, 256])
def test_a_small_set_goes_on_where_it_was_with_any_batch_size(batch_size):
    before = BatchOrder(5, 8, 0, 1, seed=3)
    after = BatchOrder(5, batch_size, 0, 1, seed=3, start_step=4, start=before.images(4))
    assert before.images(4) == after.images(4) == 32
    stream = [key for batch in batches(BatchOrder(5, 1, 0, 1, seed=3), 400) for key in batch]
    assert batches(after, 1)[0] == stream[32 : 32 + batch_size]
    last = after.last_step(100)
    assert after.images(last - 1) < 500 <= after.images(last)


def test_the_pace_is_told_of_large_and_small_sets():
    assert BatchOrder(1797, 16, 0, 1, seed=0).pace == "112 steps an epoch"
    assert BatchOrder(5, 256, 0, 1, seed=0).pace == "fewer than a batch of 256: 51.2 epochs a step"
