import math

import pytest
import torch

from data.sets import ImageFolder
from runtime.distributed import Process, single
from runtime.errors import DataError
from training.bookkeeping import Bookkeeping, share
from training.step import Step

CPU = torch.device("cpu")


def books(saved=None, dataset=(), max_bad_steps=3) -> Bookkeeping:
    return Bookkeeping(single(), dataset, max_bad_steps=max_bad_steps, saved=saved or {}, source="a.pt")


def step(loss: float, bad: bool = False) -> Step:
    return Step(torch.tensor(loss), torch.tensor(bad))


def test_the_mean_loss_is_of_good_steps():
    run = books()
    for result in (step(1.0), step(torch.nan, bad=True), step(2.0), step(torch.inf, bad=True)):
        run.add(result)
    loss, rate = run.window.close()
    assert loss == 1.5 and rate > 0
    run.add(step(torch.nan, bad=True))
    assert math.isnan(run.window.close()[0])
    run.add(step(4.0))
    assert run.window.close()[0] == 4.0


def test_bad_steps_in_a_row_are_too_many():
    run = books()
    diverged = []
    for bad in (True, True, False, True, True, True):
        run.add(step(1.0, bad))
        diverged.append(run.agree(0).diverged)
    assert diverged == [False] * 5 + [True]
    assert run.state()["bad_steps"] == [3, 5]


def test_books_that_were_saved_go_on(tmp_path):
    """In the middle of a window and of a row of bad steps."""
    whole, begun = books(), books()
    results = [step(0.1), step(0.2), step(9.0, bad=True), step(0.7), step(0.1, bad=True), step(0.1, bad=True)]
    for k, result in enumerate(results):
        whole.add(result)
        begun.add(result)
        path = tmp_path / f"{k}.pt"
        torch.save(begun.state(), path)
        begun = books(torch.load(path, weights_only=True))
    assert whole.state() == begun.state() and whole.agree(0) == begun.agree(0)
    assert whole.window.close()[0] == begun.window.close()[0]


def test_windows_of_another_number_of_processes_are_not_lost():
    totals = [[1.5, 2.0], [2.5, 2.0], [0.5, 1.0]]
    processes = [Process(rank, rank, 3, CPU) for rank in range(3)]
    assert [share(totals, p) for p in processes] == totals
    pair = [share(totals, Process(rank, rank, 2, CPU)) for rank in range(2)]
    assert pair == [[4.5, 5.0], [0.0, 0.0]]
    assert share([], processes[0]) == [0.0, 0.0]


@pytest.mark.parametrize(
    "saved",
    [
        *(
            {"window": window}
            for window in (3, [["a", 1.0]], [[1.0]], [[1.0, 2.0, 3.0]], {"a": 1}, [[float("nan"), 1.0]])
        ),
        *({"bad_steps": counts} for counts in ("x", [0], [1, 2, 3], 5, [0, 2**70])),
        *({"unreadable": indices} for indices in (7, ["a"], [-1], [1.5])),
    ],
)
def test_damaged_books_are_named(saved):
    with pytest.raises(DataError, match=r"checkpoint a\.pt: its progress has \w+ .*, which cannot be continued"):
        books(saved)


def test_a_signal_is_handed_on():
    assert books().agree(15).signum == 15 and books().agree(0).signum == 0


def test_unreadable_images_are_told_once_and_looked_at_again_after_a_restart(image_folder, tmp_path):
    (tmp_path / "class").mkdir()
    for name, source in (("a", image_folder / "ant" / "0.png"), ("b", None), ("c", None)):
        (tmp_path / "class" / f"{name}.png").write_bytes(source.read_bytes() if source else b"broken")
    data = ImageFolder(tmp_path, 8)
    run = books(dataset=data)
    run.found |= {1: "b is broken"}
    assert run.agree(0).unreadable == {1: "b is broken"}
    run.found |= {1: "b is broken", 2: "c is broken"}
    assert run.agree(0).unreadable == {2: "c is broken"}
    assert run.state()["unreadable"] == [1, 2]
    (tmp_path / "class" / "b.png").write_bytes((image_folder / "ant" / "1.png").read_bytes())  # mended
    assert list(books({"unreadable": [1, 2, 99]}, data).unreadable) == [2]
