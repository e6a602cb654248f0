import argparse
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import train
from data.order import BatchOrder
from data.sets import Digits
from kinds import model_config
from models import ComboStoc_models, SiT_models
from runtime import checkpoint
from runtime.distributed import seed_for
from runtime.errors import UsageError
from tests.conftest import DIGITS_ARGS, ROOT, run_cli
from tests.faults import NAME, launch, metrics, tensors_of
from tests.forked import run_forked
from tests.runtime.test_checkpoint import predecessor_checkpoint
from training import bookkeeping
from transport import create_transport
from transport.names import COMBOSTOC_TYPES, OF_SHAPES
from transport.timesteps import DRAWS


def run(tmp_path, *args: str, steps: int = 2, exp: str = "x"):
    """train.py in this process."""
    train.main([*DIGITS_ARGS, "--results-dir", str(tmp_path), "--max-steps", str(steps), "--exp", exp, *args])
    return tmp_path / f"ComboStoc-XS-4-{exp}"


def assert_equal_bit_for_bit(a, b):
    a, b = tensors_of(a), tensors_of(b)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_a_run_through_torchrun_leaves_what_it_should(trained):
    files = {str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file()}
    assert files == {
        *("ckpt.pt", "log.txt", "metrics.csv", "args.json", "samples/0000020.png", ".lock"),
        *("checkpoints/0000010.pt", "checkpoints/0000020.pt"),
    }
    content = checkpoint.load(trained / "ckpt.pt")
    assert list(content) == ["model", "ema", "opt", "step", "args", "class_names", "progress"]
    assert content["step"] == 20 and content["args"]["combostoc_type"] == "UNSYNC_ALL"
    assert content["args"] == json.loads((trained / "args.json").read_text())
    assert model_config(content["ema"], "x").name == "ComboStoc-XS/4"
    rows = metrics(trained)
    assert [int(r["step"]) for r in rows] == [5, 10, 15, 20]
    assert all(r["bad_steps"] == "0" and 0 < float(r["loss"]) < 5 for r in rows)
    log = (trained / "log.txt").read_text()
    for row in rows:
        assert f"(step={int(row['step']):07d}) loss {float(row['loss']):.4f}" in log
    assert "steps/s" in log and "images/s" in log
    with Image.open(trained / "samples" / "0000020.png") as picture:
        assert np.asarray(picture).std() > 0
        assert picture.size == (10 * 68 + 4, 2 * 82 + 4)  # a column a class


@pytest.mark.drill
def test_one_process_through_the_command_line(tmp_path):
    """Plain python, with data workers."""
    args = [*DIGITS_ARGS, "--num-workers", "2", "--max-steps", "20", "--exp", "one"]
    result = run_cli("train.py", *args, "--log-every", "10", cwd=tmp_path)
    assert checkpoint.load(tmp_path / "results" / "ComboStoc-XS-4-one" / "ckpt.pt")["step"] == 20
    assert "(step=0000020) loss" in result.stderr and "images/s" in result.stderr


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.drill)])
def test_the_same_command_again_continues_as_if_never_stopped(tmp_path, workers):
    """Model, average, optimiser and the log's steps, across an epoch's end (112 steps of 16 images an epoch)."""
    flags = ("--num-workers", workers, "--log-every", "3", "--global-batch-size", "256")  # 7 steps an epoch
    whole = run(tmp_path, *flags, steps=12, exp="whole")
    for steps in (5, 6, 12):
        parts = run(tmp_path, *flags, steps=steps, exp="parts")
    assert_equal_bit_for_bit(whole / "ckpt.pt", parts / "ckpt.pt")
    log = (parts / "log.txt").read_text()
    assert f"Continuing {parts / 'ckpt.pt'} from step 6 to 12" in log and "From the checkpoint" not in log
    steps_logged = [[r["step"] for r in metrics(f)] for f in (whole, parts)]
    assert steps_logged[0] == steps_logged[1] == ["3", "6", "9", "12"]


OTHER_DRAWS = DRAWS[1:]


@pytest.mark.parametrize(  # a third of them; the others: make drill
    "times", [pytest.param(name, marks=() if k % 3 == 2 else pytest.mark.drill) for k, name in enumerate(OTHER_DRAWS)]
)
def test_a_run_with_another_draw_of_times_continues_and_is_sampled(tmp_path, times):
    """As if never stopped, without being told again how it was begun; in segments, accumulated;
    guided, ahead of themselves and graded."""
    halves = "on" if times in ("blend", "self-flow") else "off"
    flags = ("--times", times, "--halfmixing", halves, "--difficulty", "0.01", "--grad-accum", "2")
    whole = run(tmp_path, *flags, steps=4, exp="whole")
    run(tmp_path, *flags, steps=2, exp="parts")
    parts = run(tmp_path, steps=4, exp="parts")
    assert_equal_bit_for_bit(whole / "ckpt.pt", parts / "ckpt.pt")
    trained = checkpoint.load(parts / "ckpt.pt")["args"]
    assert (trained["times"], trained["halfmixing"], trained["difficulty"]) == (times, halves, 0.01)
    told = f"--times {times}, " + f"--halfmixing {halves}, " * (halves == "on") + "--difficulty 0.01"
    assert f"From the checkpoint: {told}" in (parts / "log.txt").read_text()

    flags = ["ODE", "--ckpt", str(parts / "ckpt.pt"), "--cfg-scale", "2", "--class-labels", "3"]
    flags += ["--sampling-method", "look-ahead", "--num-sampling-steps", "5", "--out"]
    sample.main([*flags, str(tmp_path / "plain.png")])
    kept = ["--reference", str(ROOT / "visuals" / "three.png"), "--preserve", "left:0.9"]
    sample.main([*flags, str(tmp_path / "kept.png"), *kept])
    for name in ("plain", "kept"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert np.asarray(picture).std() > 0


def test_speed_is_that_of_training_alone(tmp_path, monkeypatch):
    """A clock on which all that comes before the first step takes 1,000 s and each step half a second."""
    clock = [0.0]

    def slow(function, seconds: float):
        def wrapped(*args, **kwargs):
            clock[0] += seconds
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(bookkeeping, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for place, name, seconds in (
        (train.Experiment, "open", 1000),
        (train, "load_batches", 1000),
        (train, "training_step", 0.5),
    ):
        monkeypatch.setattr(place, name, slow(getattr(place, name), seconds))
    folder = run(tmp_path, "--log-every", "1", steps=3)
    assert (folder / "log.txt").read_text().count(", 2.00 steps/s, 32.0 images/s") == 3


def assert_steps_by_hand(file, steps: int, grad_accum: int = 1):
    """DDP's first steps on digits done again: gradients of both processes' parts averaged, AdamW, moving average."""
    content = checkpoint.load(file)
    data = Digits(8, 1)
    transport = create_transport(combostoc_type="UNSYNC_ALL")
    torch.manual_seed(seed_for(0, "init"))
    model = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=1, num_classes=10)
    ema = {k: p.detach().clone() for k, p in model.named_parameters()}
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
    orders = [iter(BatchOrder(len(data), 16, rank, 2, seed=0)) for rank in range(2)]
    for step in range(steps):
        opt.zero_grad()
        for rank in range(2):
            images, labels = zip(*(data[key] for key in next(orders[rank])), strict=True)
            torch.manual_seed(seed_for(0, "step", step, rank))
            for x1, y in zip(
                torch.stack(images).chunk(grad_accum), torch.tensor(labels).chunk(grad_accum), strict=True
            ):
                losses = transport.training_losses(model, x1, {"y": y})["loss"]
                (losses.mean() / 2 / grad_accum).backward()
        opt.step()
        for k, p in model.named_parameters():
            ema[k] = 0.9 * ema[k] + 0.1 * p.detach()
    assert content["step"] == steps
    for k, p in model.named_parameters():
        torch.testing.assert_close(content["model"][k], p.detach(), rtol=0, atol=2e-6)
        torch.testing.assert_close(content["ema"][k], ema[k], rtol=0, atol=2e-6)


def test_a_preview_of_noise_prediction_on_vp(tmp_path):
    """Whose level of noise has no value beyond t = 1."""
    folder = run(tmp_path, "--path-type", "VP", "--prediction", "noise", "--sample-every", "1", "--ema-decay", "0.05")
    assert {p.name for p in (folder / "samples").iterdir()} == {"0000001.png", "0000002.png"}
    assert "Warning" not in (folder / "log.txt").read_text()


def test_two_processes_compute_the_step_of_the_joined_batch(trained):
    assert_steps_by_hand(trained / "checkpoints" / "0000010.pt", 10)


def test_two_processes_in_two_parts_each(tmp_path):
    """Gradients are averaged over processes once a step, after the last part."""
    args = [*DIGITS_ARGS, "--max-steps", "3", "--grad-accum", "2", "--ema-decay", "0.9", "--results-dir", str(tmp_path)]
    assert launch(args, tmp_path / "output", world_size=2) == [0, 0]
    assert_steps_by_hand(tmp_path / NAME / "ckpt.pt", 3, grad_accum=2)


def test_bf16_in_parts_with_a_limit_on_gradients_continues_exactly(tmp_path):
    """Settings that are not typed again come from the checkpoint."""
    flags = ["--precision", "bf16", "--grad-accum", "2", "--max-grad-norm", "0.5", "--sample-every", "2"]
    whole = run(tmp_path, *flags, "--ckpt-every", "1", steps=2, exp="whole")
    again = run(tmp_path, "--ckpt", str(whole / "checkpoints" / "0000001.pt"), steps=2, exp="again")
    assert_equal_bit_for_bit(whole / "ckpt.pt", again / "ckpt.pt")
    assert "--max-grad-norm 0.5, --grad-accum 2, --precision bf16" in (again / "log.txt").read_text()
    tensors = tensors_of(whole / "ckpt.pt")
    assert all(v.dtype == torch.float32 for k, v in tensors.items() if k.startswith("model."))
    for flag in range(0, 6, 2):  # each of the three matters
        other = tensors_of(run(tmp_path, *flags[:flag], *flags[flag + 2 :], steps=2, exp=f"without {flag}") / "ckpt.pt")
        assert any(not torch.equal(v, other[k]) for k, v in tensors.items()), flags[flag]


def test_a_schedule_of_the_learning_rate_continues_exactly(tmp_path):
    flags = ["--warmup-steps", "2", "--lr-decay", "3", "--lr", "1e-2"]
    whole = run(tmp_path, *flags, "--ckpt-every", "1", steps=6, exp="whole")
    for step in (1, 4):  # while it rises and while it falls
        again = run(tmp_path, "--ckpt", str(whole / "checkpoints" / f"{step:07d}.pt"), steps=6, exp=f"from {step}")
        assert_equal_bit_for_bit(whole / "ckpt.pt", again / "ckpt.pt")
        assert "--lr 0.01, --warmup-steps 2, --lr-decay 3" in (again / "log.txt").read_text()
    constant = tensors_of(run(tmp_path, "--lr", "1e-2", steps=6, exp="constant") / "ckpt.pt")
    assert any(not torch.equal(v, constant[k]) for k, v in tensors_of(whole / "ckpt.pt").items())


def test_settings_of_optimiser_average_and_times_continue_exactly(tmp_path):
    """All at once, from a checkpoint that calls the draw by its old name; each of them matters."""
    settings = ["--betas 0.8 0.95", "--weight-decay 0.1", "--ema-warmup", "--time-shift 2.5", "--loss-clamp 0.9"]
    settings += ["--times lognormal:-0.8,0.8"]
    flags = " ".join(["--prediction data --loss-weight velocity --lr 1e-2", *settings]).split()
    whole = run(tmp_path, *flags, "--ckpt-every", "2", steps=4, exp="whole")
    content = checkpoint.load(whole / "checkpoints" / "0000002.pt")
    assert content["args"]["times"] == "logit-normal:-0.8,0.8"
    content["args"]["times"] = "lognormal:-0.8,0.8"
    checkpoint.save(tmp_path / "old.pt", content)
    again = run(tmp_path, "--ckpt", str(tmp_path / "old.pt"), steps=4, exp="again")
    assert_equal_bit_for_bit(whole / "ckpt.pt", again / "ckpt.pt")
    assert "--time-shift 2.5, --loss-clamp 0.9" in (log := (again / "log.txt").read_text())
    assert "--betas 0.8 0.95, --weight-decay 0.1" in log and "--ema-warmup" in log
    tensors = tensors_of(whole / "ckpt.pt")
    for name, plain in {"betas": "0.9 0.999", "weight-decay": "0", "time-shift": "1", "loss-clamp": "0"}.items():
        other = tensors_of(run(tmp_path, *flags, f"--{name}", *plain.split(), steps=4, exp=name) / "ckpt.pt")
        assert any(not torch.equal(v, other[k]) for k, v in tensors.items()), name
    other = run(tmp_path, *flags, "--no-ema-warmup", steps=4, exp="ema")
    assert "4 steps with --ema-decay 0.9999, 100% of the averaged weights" in (other / "log.txt").read_text()
    assert "averaged weights" not in (whole / "log.txt").read_text()

    out = ["--ckpt", str(again / "ckpt.pt"), "--num-sampling-steps", "5", "--class-labels", "3", "--out"]
    pictures = []
    for name, words in {"own": [], "same": ["--time-shift", "2.5"], "other": ["--time-shift", "auto"]}.items():
        sample.main(["SDE", *out, str(tmp_path / f"{name}.png"), *words])
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_schedule_longer_than_the_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--warmup-steps 4 and --lr-decay 3 are more than the run's 6 steps"):
        run(tmp_path, "--warmup-steps", "4", "--lr-decay", "3", steps=6)


def test_compile_reaches_every_block(tmp_path, monkeypatch):
    """What is compiled is tested with the models."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: compiled.append(self))
    run(tmp_path, "--compile", "--sample-every", "1", steps=1)
    blocks = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=1, num_classes=10).blocks
    assert len(set(compiled)) == len(compiled) == len(blocks)


@pytest.mark.drill
def test_compiled_training_in_two_processes_is_training(tmp_path):
    args = [*DIGITS_ARGS, "--max-steps", "2", "--sample-every", "2"]
    eager = [*args, "--exp", "eager", "--results-dir", str(tmp_path / "results")]
    assert launch(eager, tmp_path / "output", world_size=2) == [0, 0]
    run_forked("train.py", *args, "--exp", "compiled", "--compile", processes=2, cwd=tmp_path)
    folder = tmp_path / "results"
    eager, compiled = (tensors_of(folder / f"ComboStoc-XS-4-{exp}" / "ckpt.pt") for exp in ("eager", "compiled"))
    assert eager.keys() == compiled.keys() and any(not torch.equal(v, compiled[k]) for k, v in eager.items())
    for k, v in eager.items():
        if not k.startswith("opt."):
            torch.testing.assert_close(compiled[k], v, rtol=1e-4, atol=2e-4)  # one AdamW step may turn by 1e-4


def test_two_processes_continue_as_if_never_stopped(trained, tmp_path):
    args = [*DIGITS_ARGS, "--max-steps", "20", "--ckpt", str(trained / "checkpoints" / "0000010.pt")]
    assert launch([*args, "--results-dir", str(tmp_path)], tmp_path / "output", world_size=2) == [0, 0]
    assert_equal_bit_for_bit(tmp_path / NAME / "ckpt.pt", trained / "ckpt.pt")


@pytest.mark.fast
def test_a_command_with_ckpt_that_is_started_again_continues_itself(tmp_path):
    """As a scheduler does after pre-emption; it must not fall back to the file it began from."""
    begun = run(tmp_path, steps=1, exp="begun")
    flags = ("--ckpt", str(begun / "ckpt.pt"))
    run(tmp_path, *flags, steps=3, exp="tuned")
    tuned = run(tmp_path, *flags, steps=5, exp="tuned")
    log = (tuned / "log.txt").read_text()
    assert f"continuing {tuned / 'ckpt.pt'}, not --ckpt {begun / 'ckpt.pt'}" in log and "from step 3 to 5" in log
    assert_equal_bit_for_bit(tuned / "ckpt.pt", run(tmp_path, steps=5, exp="whole") / "ckpt.pt")


def test_so_does_one_that_leaves_the_model_to_the_checkpoint(tmp_path):
    """The folder's name has the model in it, which only the checkpoint tells."""
    begun = run(tmp_path, steps=1, exp="begun")
    data = ["--data-path", "digits", "--num-workers", "0", "--results-dir", str(tmp_path), "--exp", "tuned"]
    for steps in ("2", "3"):
        train.main([*data, "--ckpt", str(begun / "ckpt.pt"), "--max-steps", steps])
    log = (tmp_path / "ComboStoc-XS-4-tuned" / "log.txt").read_text()
    assert "from step 1 to 2" in log and "from step 2 to 3" in log


def test_a_log_that_was_cut_off_is_mended(tmp_path):
    folder = run(tmp_path, "--log-every", "1", steps=2)
    with open(folder / "metrics.csv", "a") as file:
        file.write("3,0,0.9,1,1\n\n4,0")
    run(tmp_path, "--log-every", "1", steps=4)
    assert [int(row["step"]) for row in metrics(folder)] == [1, 2, 3, 4]


def test_classes_without_data_are_announced(tmp_path):
    folder = run(tmp_path, "--num-classes", "12", "--sample-every", "2")
    assert "Warning: the data have 10 of --num-classes 12" in (folder / "log.txt").read_text()


def test_five_pictures_of_ones_own_train_and_continue_as_if_never_stopped(tmp_path):
    """Fewer than a batch: each step takes them several times. The log says where --epochs ends before --max-steps."""
    (tmp_path / "data" / "own").mkdir(parents=True)
    for k in range(5):
        Image.new("RGB", (8, 8), (50 * k, 0, 99)).save(tmp_path / "data" / "own" / f"{k}.png")
    own = ["--data-path", str(tmp_path / "data"), "--num-classes", "1", "--epochs", "10"]
    folders = [run(tmp_path, *own, steps=3, exp="whole")]
    whole = (folders[0] / "log.txt").read_text()
    assert "5 images in 1 classes, fewer than a batch of 16: 3.2 epochs a step" in whole and "--epochs" not in whole
    run(tmp_path, *own, steps=2, exp="parts")
    folders.append(run(tmp_path, *own, steps=3, exp="parts"))
    ends = [folder / "ckpt.pt" for folder in folders]
    assert_equal_bit_for_bit(*ends)
    assert [checkpoint.load(end)["progress"]["images_seen"] for end in ends] == [48, 48]
    run(tmp_path, *own, steps=100, exp="parts")
    log = (folders[1] / "log.txt").read_text()
    assert "Warning: --epochs 10 ends at step 4, before --max-steps 100" in log and "from step 3 to 4" in log


def test_a_model_without_learn_sigma_continues(tmp_path):
    build = ComboStoc_models["ComboStoc-XS/4"]
    torch.save(build(input_size=8, in_channels=1, num_classes=10, learn_sigma=False).state_dict(), tmp_path / "a.pt")
    folder = run(tmp_path, "--ckpt", str(tmp_path / "a.pt"))
    assert not model_config(checkpoint.load(folder / "ckpt.pt")["ema"], "x").learn_sigma


def test_gradient_checkpointing_trains_the_same(tmp_path):
    plain = tensors_of(run(tmp_path, steps=3, exp="plain") / "ckpt.pt")
    recomputed = tensors_of(run(tmp_path, "--grad-checkpointing", "2", steps=3, exp="recomputed") / "ckpt.pt")
    for k in plain:
        torch.testing.assert_close(plain[k], recomputed[k], rtol=1e-5, atol=1e-7)


def test_an_average_without_memory_is_the_model(tmp_path):
    content = checkpoint.load(run(tmp_path, "--ema-decay", "0") / "ckpt.pt")
    for k, v in content["model"].items():
        torch.testing.assert_close(content["ema"][k], v)


def test_ckpt_continues_a_file_with_its_configuration(tmp_path, capsys):
    whole = run(tmp_path, "--path-type", "GVP", "--lr", "1e-3", "--ckpt-every", "2", steps=4, exp="whole")
    kept = whole / "checkpoints" / "0000002.pt"
    assert_equal_bit_for_bit(run(tmp_path, "--ckpt", str(kept), steps=4, exp="again") / "ckpt.pt", whole / "ckpt.pt")
    assert (
        "From the checkpoint: --path-type GVP, --lr 0.001\n" in (tmp_path / "ComboStoc-XS-4-again/log.txt").read_text()
    )
    other = run(tmp_path, "--ckpt", str(kept), "--lr", "2e-3", "--path-type", "Linear", steps=4, exp="other")
    log = (other / "log.txt").read_text()
    assert "Warning: --lr 0.002 instead of the checkpoint's 0.001" in log
    assert "Warning: --path-type Linear instead of the checkpoint's GVP" in log
    content = checkpoint.load(other / "ckpt.pt")
    assert content["opt"]["param_groups"][0]["lr"] == 2e-3 and content["args"]["path_type"] == "Linear"


def test_a_checkpoint_in_the_predecessors_layout_continues(tmp_path):
    """No step, an argparse.Namespace, and an optimiser over all parameters."""
    torch.manual_seed(0)
    model = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=1, num_classes=10)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
    for _ in range(3):
        model(torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 1])).square().sum().backward()
        opt.step()
    namespace = argparse.Namespace(model="ComboStoc-XS/4", image_size=8, num_classes=10, path_type="GVP", vae="none")
    state = model.state_dict()
    torch.save({"model": state, "ema": state, "opt": opt.state_dict(), "args": namespace}, tmp_path / "old.pt")
    folder = run(tmp_path, "--ckpt", str(tmp_path / "old.pt"), steps=5)
    content = checkpoint.load(folder / "ckpt.pt")
    assert content["step"] == 5 and content["args"]["path_type"] == "GVP"
    assert content["opt"]["state"][1]["step"] == 5


def test_weights_alone_start_at_step_0(tmp_path):
    state = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=1, num_classes=10).state_dict()
    torch.save(state, tmp_path / "ema.pt")
    assert checkpoint.load(run(tmp_path, "--ckpt", str(tmp_path / "ema.pt")) / "ckpt.pt")["step"] == 2
    assert predecessor_checkpoint({"w": torch.ones(1)})["args"] == argparse.Namespace()


TYPES = [kind for kind in COMBOSTOC_TYPES if kind not in OF_SHAPES]
ALL_TRANSPORTS = [
    *itertools.product(["Linear", "GVP", "VP"], ["velocity"], ["None"], TYPES),
    *itertools.product(["Linear", "GVP", "VP"], ["score", "noise"], ["None", "velocity", "likelihood"], ["UNSYNC_ALL"]),
    ("Linear", "velocity", "likelihood", "UNSYNC_ALL"),
]
IN_SUITE = [  # every choice of each flag, and every path with every prediction; the others: make drill
    ("Linear", "velocity", "None", "UNSYNC_NONE"),
    ("GVP", "velocity", "None", "UNSYNC_VEC"),
    ("VP", "velocity", "None", "UNSYNC_PATCH"),
    ("Linear", "score", "None", "UNSYNC_ALL"),
    ("GVP", "score", "velocity", "UNSYNC_ALL"),
    ("VP", "score", "likelihood", "UNSYNC_ALL"),
    ("Linear", "noise", "likelihood", "UNSYNC_ALL"),
    ("GVP", "noise", "None", "UNSYNC_ALL"),
    ("VP", "noise", "velocity", "UNSYNC_ALL"),
    ("Linear", "velocity", "likelihood", "UNSYNC_ALL"),
]
TRANSPORTS = [pytest.param(*case, marks=() if case in IN_SUITE else pytest.mark.drill) for case in ALL_TRANSPORTS]


@pytest.mark.parametrize(("path", "prediction", "weight", "kind"), TRANSPORTS)
def test_every_choice_of_the_transport_flags_trains(tmp_path, path, prediction, weight, kind):
    flags = ["--path-type", path, "--prediction", prediction, "--loss-weight", weight, "--combostoc-type", kind]
    folder = run(tmp_path, *flags, "--log-every", "1")
    losses = [float(r["loss"]) for r in metrics(folder)]
    assert np.isfinite(losses).all()
    assert all(v.isfinite().all() for v in checkpoint.load(folder / "ckpt.pt")["model"].values())
    said = f"Warning: --loss-weight {weight} has no effect on --prediction velocity" in (folder / "log.txt").read_text()
    assert said == (prediction == "velocity" and weight != "None")


def test_training_in_latent_space_from_an_image_folder(tmp_path, image_folder, tiny_vae):
    """Pictures through a real AutoencoderKL; SiT takes one timestep per sample by default."""
    args = ["--data-path", image_folder, "--vae", tiny_vae, "--image-size", "16", "--num-classes", "3"]
    args += ["--model", "SiT-XS/2", "--global-batch-size", "4", "--num-workers", "0", "--max-steps", "3"]
    train.main([*map(str, args), "--sample-every", "3", "--results-dir", str(tmp_path)])
    content = checkpoint.load(tmp_path / "SiT-XS-2-exp_tmp" / "ckpt.pt")
    assert content["args"]["combostoc_type"] == "UNSYNC_NONE" and content["class_names"] == ["ant", "bee", "cat"]
    config = model_config(content["ema"], "x")
    assert (config.name, config.input_size, config.in_channels, config.num_classes) == ("SiT-XS/2", 8, 4, 3)
    assert set(content["model"]) == set(SiT_models["SiT-XS/2"](input_size=8, num_classes=3).state_dict())


def test_training_learns(tmp_path):
    folder = run(tmp_path, "--lr", "5e-3", "--log-every", "15", "--global-batch-size", "32", steps=60)
    losses = [float(r["loss"]) for r in metrics(folder)]
    assert losses[3] < 0.75 * losses[0], losses


@pytest.mark.fast
def test_an_interval_of_zero_is_never(tmp_path):
    flags = [f for name in ("log", "ckpt", "reckpt", "sample") for f in (f"--{name}-every", "0")]
    folder = run(tmp_path, *flags, steps=2)
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [".lock", "args.json", "ckpt.pt", "log.txt"]
