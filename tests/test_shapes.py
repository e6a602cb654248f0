"""Structured shapes through the programs: what holds for images holds for them."""

import csv
import json
import os
import re
import signal
from dataclasses import replace
from itertools import chain, product, repeat

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import export
import extract_latents
import sample
import sample_ddp
import train
from runtime import checkpoint
from runtime.errors import run_program
from sampling.network import ImageNoise
from shapes import monitor as shape_monitor
from shapes import point_network
from shapes.control import ShapeControl
from shapes.judging import NUMBERS
from shapes.sets import Layout, furniture, load_shapes, save_shapes
from tests.conftest import DIGITS_ARGS
from tests.faults import tensors_of
from tests.forked import run_forked

STEPS = ("--sampling-method", "euler", "--num-sampling-steps", "6")


@pytest.fixture(scope="module")
def chairs(tmp_path_factory):
    """A small set."""
    path = tmp_path_factory.mktemp("shapes") / "few.npz"
    save_shapes(furniture(count=120), path)
    return path


def run(folder, chairs, *args: str, steps: int = 4, exp: str = "x"):
    """train.py in this process."""
    flags = ["--data-path", str(chairs), "--model", "Parts-XS", "--num-classes", "6", "--global-batch-size", "8"]
    flags += ["--num-workers", "0", "--log-every", "2", "--sample-every", "0", "--results-dir", str(folder)]
    train.main([*flags, "--max-steps", str(steps), "--exp", exp, *args])
    return folder / f"Parts-XS-{exp}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, chairs):
    return run(tmp_path_factory.mktemp("trained"), chairs, "--sample-every", "4", "--lr", "1e-2") / "ckpt.pt"


def test_training_leaves_what_it_should(trained, chairs):
    content = checkpoint.load(trained)
    args = content["args"]
    assert (args["combostoc_type"], args["times"], args["halfmixing"]) == ("UNSYNC_ATT_PART", "combostoc", "off")
    assert args["prediction"] == "data" and content["class_names"] == load_shapes(chairs).class_names
    assert content["layout"]["names"] == ["box.center", "box.size", "box.axes", "code.exponents"]
    with Image.open(trained.parent / "samples" / "0000004.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 50
    assert "102 shapes in 6 classes" in (trained.parent / "log.txt").read_text()  # of 120 those that are for training


@pytest.mark.parametrize("kind", ["UNSYNC_NONE", "UNSYNC_PART", "UNSYNC_ALL"])
def test_a_run_continues_as_if_never_stopped(tmp_path, chairs, kind):
    flags = ("--combostoc-type", kind, "--grad-accum", "2")
    whole = run(tmp_path, chairs, *flags, exp="whole")
    run(tmp_path, chairs, *flags, steps=2, exp="parts")
    parts = run(tmp_path, chairs, exp="parts")  # without being told again
    a, b = (tensors_of(folder / "ckpt.pt") for folder in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


KINDS = ("NONE", "PART", "ATT", "ATT_PART", "VEC", "ALL")
TRANSPORTS = [  # a kind once, every path with every prediction; the others: make drill
    pytest.param(path, prediction, kind, marks=() if k == (2 * p + q) else pytest.mark.drill)
    for (p, path), (q, prediction) in product(enumerate(("Linear", "GVP", "VP")), enumerate(("data", "velocity")))
    for k, kind in enumerate(KINDS)
]


@pytest.mark.parametrize(("path", "prediction", "kind"), TRANSPORTS)
def test_every_choice_of_the_transport_flags_trains(tmp_path, chairs, path, prediction, kind):
    flags = ["--path-type", path, "--prediction", prediction, "--combostoc-type", f"UNSYNC_{kind}"]
    folder = run(tmp_path, chairs, *flags, "--log-every", "1", steps=2)
    losses = [float(line.split(",")[2]) for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert len(losses) == 2 and np.isfinite(losses).all()
    content = checkpoint.load(folder / "ckpt.pt")
    assert all(v.isfinite().all() for v in content["model"].values())
    said = {name: content["args"][name] for name in ("path_type", "prediction", "combostoc_type")}
    assert said == {"path_type": path, "prediction": prediction, "combostoc_type": f"UNSYNC_{kind}"}


def test_bf16_trains_and_samples(tmp_path, chairs):
    folder = run(tmp_path, chairs, "--precision", "bf16", "--lr", "1e-2")
    flags = ["SDE", "--ckpt", str(folder / "ckpt.pt"), "--num-sampling-steps", "5", "--num-fid-samples", "2"]
    made = []
    for precision in ("bf16", "fp32"):
        sample_ddp.main([*flags, "--precision", precision, "--sample-dir", str(tmp_path / precision)])
        (npz,) = (tmp_path / precision).glob("*.npz")
        made.append(torch.from_numpy(np.load(npz.with_suffix("") / "000000.npy")))
    assert not torch.equal(*made) and (made[0] - made[1]).norm() < 0.1 * made[1].norm()


def test_a_run_on_other_shapes_keeps_the_layout_that_it_was_trained_with(tmp_path, chairs):
    first = run(tmp_path, chairs, steps=2)
    before = checkpoint.load(first / "ckpt.pt")["layout"]
    save_shapes(furniture(seed=5, count=60), tmp_path / "others.npz")
    again = run(tmp_path, tmp_path / "others.npz", steps=4)
    assert checkpoint.load(again / "ckpt.pt")["layout"] == before
    assert "Warning: the data have changed" in (again / "log.txt").read_text()


def sampled(trained, out, *args: str):
    sample.main(["ODE", "--ckpt", str(trained), *STEPS, "--out", str(out), *args])
    with Image.open(out) as picture:
        return np.asarray(picture)


def test_a_sheet_of_samples_and_a_scene(tmp_path, trained, capsys):
    sheet = sampled(trained, tmp_path / "a.png", "--class-labels", "chair", "table", "--glb", str(tmp_path / "a.glb"))
    assert sheet.shape[1] == 2 * 196 + 4 and (tmp_path / "a.glb").read_bytes()[:4] == b"glTF"
    assert "2 pictures in" in capsys.readouterr().out
    again = sampled(trained, tmp_path / "b.png", "--class-labels", "chair", "table", "--batch-size", "1")
    assert (np.abs(sheet.astype(int) - again) > 40).mean() < 0.01  # shapes do not depend on the batch
    export.main([str(trained), "--out", str(tmp_path / "ema.safetensors")])
    exported = sampled(tmp_path / "ema.safetensors", tmp_path / "c.png", "--class-labels", "chair", "table")
    assert np.array_equal(sheet, exported)


def test_parts_and_attributes_are_kept(tmp_path, trained, chairs, monkeypatch):
    """Bit for bit at 1: what the program hands to the picture."""
    kept, original = {}, ShapeControl.sheet

    def sheet(control, samples, *rest):
        made = [control.layout.decode(torch.from_numpy(x)) for x in samples]
        kept.update(references=control.shapes, samples=made, keep=control.keep)
        return original(control, samples, *rest)

    monkeypatch.setattr(ShapeControl, "sheet", sheet)
    flags = ["--reference", f"{chairs}:0", "shapes:7", "--variations", "2"]
    sampled(trained, tmp_path / "a.png", *flags, "--preserve", "parts:0,2:1")
    for k, made in enumerate(kept["samples"]):
        shape = kept["references"][k // 2]
        assert all(np.allclose(made[name][0], shape[name][0], atol=1e-5) for name in shape)
    sampled(trained, tmp_path / "b.png", *flags, "--preserve", "exists:1,box.size:1,code:0.5")
    for k, made in enumerate(kept["samples"]):
        shape = kept["references"][k // 2]
        count = len(shape["box.size"])
        assert len(made["box.size"]) == count
        assert np.allclose(made["box.size"], shape["box.size"], atol=1e-5)
        assert not np.allclose(made["box.center"], shape["box.center"], atol=1e-2)
    assert set(kept["keep"].unique().tolist()) == {0.0, 0.5, 1.0}


@pytest.fixture(scope="module")
def others(tmp_path_factory, trained, chairs):
    """Files that do not fit: an image model and its samples, shapes without codes, a model of few parts."""
    folder = tmp_path_factory.mktemp("others")
    digits = [*DIGITS_ARGS, "--max-steps", "1", "--results-dir", str(folder), "--exp", "x", "--sample-every", "0"]
    train.main(digits)
    Image.new("L", (8, 8)).save(folder / "a.png")
    np.savez(folder / "images.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    shapes = load_shapes(chairs)
    boxes = {name: values for name, values in shapes.attributes.items() if name.startswith("box")}
    save_shapes(replace(shapes, attributes=boxes), folder / "boxes.npz")
    save_shapes(replace(shapes.select([0]), split=None), folder / "one.npz")
    content = checkpoint.load(trained)
    content["layout"]["max_parts"] = 2
    torch.save(content, folder / "two.pt")
    return folder


def test_what_has_no_effect_on_shapes_is_said(tmp_path, trained, chairs, capsys):
    flags = ["ODE", "--ckpt", str(trained), *STEPS, "--num-fid-samples", "1", "--cfg-scale", "2"]
    flags += ["--sample-dir", str(tmp_path)]
    sample_ddp.main(flags)
    capsys.readouterr()
    for typed, line in {
        "--cfg-channels all": "--cfg-channels has no effect on shapes, which are guided in all numbers",
        "--vae mse": "--vae has no effect on shapes, which are not encoded",
        "--image-size 256": "--image-size has no effect on shapes, which are no pictures",
    }.items():
        sample_ddp.main([*flags, *typed.split()])
        assert line in capsys.readouterr().err
    assert len(list(tmp_path.glob("*.npz"))) == 1  # all the same
    folder = run(tmp_path, chairs, "--vae", "none", "--image-size", "8", "--no-flip", "--encode-bf16", steps=1)
    line = "Warning: no effect on shapes: --encode-bf16, --flip, --image-size, --vae"
    assert line in (folder / "log.txt").read_text()


def test_many_samples_are_the_same_by_any_number_of_processes_and_continue(tmp_path, trained, capsys):
    flags = ["ODE", "--ckpt", str(trained), *STEPS, "--num-fid-samples", "10", "--balanced-labels"]
    sample_ddp.main([*flags, "--per-proc-batch-size", "4", "--sample-dir", str(tmp_path / "one")])
    (one,) = (tmp_path / "one").glob("*.npz")
    two = tmp_path / "two"
    run_forked("sample_ddp.py", *flags, "--per-proc-batch-size", "3", "--sample-dir", two, processes=2, cwd=tmp_path)
    (both,) = two.glob("*.npz")
    a, b = load_shapes(one), load_shapes(both)
    assert a.labels.tolist() == b.labels.tolist() == [k % 6 for k in range(10)]
    assert a.counts.tolist() == b.counts.tolist()
    assert all(np.allclose(a.attributes[name], b.attributes[name], atol=1e-3) for name in a.attributes)

    folder = one.with_suffix("")
    (folder / "000003.npy").write_bytes(b"cut")
    (folder / "000005.npy").unlink()
    before = one.read_bytes()
    capsys.readouterr()
    sample_ddp.main([*flags, "--per-proc-batch-size", "4", "--sample-dir", str(tmp_path / "one")])
    said = capsys.readouterr()
    assert "000003.npy is damaged" in said.err and "8 of 10 shapes are there" in said.out
    after = load_shapes(one)
    assert before and all(np.allclose(after.attributes[n], a.attributes[n], atol=1e-3) for n in a.attributes)


EVALUATED = ("--eval-every", "2", "--eval-samples", "13", "--eval-sampling-steps", "5")


def judge_hastily(rank: int = 0) -> None:
    """Fewer points and pairs, and a point network that has hardly been trained."""
    shape_monitor.OFTEN_POINTS, shape_monitor.OFTEN_COMPARED, point_network.STEPS = 64, 10, 5


@pytest.fixture
def hasty(monkeypatch):
    for module, name in ((shape_monitor, "OFTEN_POINTS"), (shape_monitor, "OFTEN_COMPARED"), (point_network, "STEPS")):
        monkeypatch.setattr(module, name, getattr(module, name))  # to be put back
    judge_hastily()


def rows(folder) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "evaluations.csv").read_text().splitlines()))


def test_numbers_during_training_are_those_of_sample_ddp_and_evaluate(tmp_path, chairs, trained, hasty):
    """By one process, or by two that make up for them; and the training is what it is without."""
    folder = run(tmp_path, chairs, "--lr", "1e-2", "--ema-decay", "0.5", *EVALUATED)
    first, last = rows(folder)
    assert (first["step"], last["step"], last["samples"]) == ("2", "4", "13")
    assert first["FD-points"] != last["FD-points"]
    log = (folder / "log.txt").read_text()
    assert f"against 12 shapes of {chairs}, as evaluate.py --points 64 --compared 10" in log
    assert f"FD-points {float(last['FD-points']):.5g}, connected_percent" in log and "(13 samples, " in log
    a, b = (tensors_of(path) for path in (trained, folder / "ckpt.pt"))
    assert all(torch.equal(a[k], b[k]) for k in a if not k.startswith("ema."))

    flags = ["SDE", "--ckpt", str(folder / "ckpt.pt"), "--num-fid-samples", "13", "--num-sampling-steps", "5"]
    sample_ddp.main([*flags, "--balanced-labels", "--sample-dir", str(tmp_path / "samples")])
    (npz,) = (tmp_path / "samples").glob("*.npz")
    few = ["--points", "64", "--compared", "10"]
    evaluate.main([str(npz), str(chairs), *few, "--out", str(tmp_path / "numbers.json")])
    expected = json.loads((tmp_path / "numbers.json").read_text())
    assert list(last)[4:] == list(NUMBERS) == [name for name in expected if name in NUMBERS]
    for name in NUMBERS:
        assert float(last[name]) == pytest.approx(expected[name], rel=1e-3) and np.isfinite(expected[name])

    (folder / "evaluations.csv").unlink()
    flags = ["--data-path", chairs, "--model", "Parts-XS", "--num-classes", "6", "--exp", "x"]
    flags += ["--results-dir", tmp_path, "--max-steps", "4", "--num-workers", "0", "--sample-every", "0", *EVALUATED]
    run_forked("train.py", *flags, processes=2, cwd=tmp_path, before=judge_hastily)
    (again,) = rows(folder)
    assert again.keys() == last.keys() and again["step"] == "4"
    for name in NUMBERS:
        assert float(again[name]) == pytest.approx(float(last[name]), rel=1e-3)


def test_a_signal_ends_an_evaluation_which_the_run_that_continues_makes_up_for(tmp_path, chairs, hasty, monkeypatch):
    """Against another set."""
    save_shapes(furniture(seed=1, count=30), tmp_path / "others.npz")
    flags = (*EVALUATED, "--eval-reference", str(tmp_path / "others.npz"))
    labels = ImageNoise.labels

    def interrupted(self, classes):
        os.kill(os.getpid(), signal.SIGTERM)
        return labels(self, classes)

    monkeypatch.setattr(ImageNoise, "labels", interrupted)
    with pytest.raises(SystemExit, match="143"):
        run(tmp_path, chairs, *flags, steps=2)
    folder = tmp_path / "Parts-XS-x"
    assert not (folder / "evaluations.csv").exists() and checkpoint.load(folder / "ckpt.pt")["step"] == 2
    monkeypatch.setattr(ImageNoise, "labels", labels)
    run(tmp_path, chairs, *flags, steps=2)
    (row,) = rows(folder)
    assert (row["step"], row["reference"]) == ("2", str(tmp_path / "others.npz"))


def test_samples_that_cannot_be_judged_are_warnings_and_training_goes_on(tmp_path, chairs, hasty, monkeypatch):
    """Not finite at one step, too large at the next."""
    decode, factors = Layout.decode, {2: np.nan, 4: 1e20}
    step = chain([2], repeat(4))  # the first shape ends the first evaluation

    def spoilt(self, x):
        return decode(self, x * factors[next(step)])

    monkeypatch.setattr(Layout, "decode", spoilt)
    folder = run(tmp_path, chairs, *EVALUATED)
    log = (folder / "log.txt").read_text()
    assert "Warning: no evaluation at step 2: a shape is not finite" in log
    assert re.search(r"no evaluation at step 4: samples: box\.\w+ of shape \d+ is not finite, or beyond 1e\+15", log)
    assert "Done" in log and not (folder / "evaluations.csv").exists()


def test_sets_are_evaluated(tmp_path, chairs, capsys):
    few = ["--points", "64", "--compared", "10"]
    evaluate.main([str(chairs), str(chairs), *few, "--out", str(tmp_path / "numbers.json")])
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["sample_count"] == 120 and numbers["reference_count"] == 12  # of the test split
    assert numbers["FD-points"] >= 0 and "coverage_percent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "arguments", "code", "line"),
    [
        (train, "--data-path {set} --model SiT-S/2", 2, "SiT-S/2 does not fit --data-path .*give --model Parts-B"),
        (train, "--data-path digits --model Parts-S", 2, "Parts-S does not fit --data-path digits"),
        (train, "--data-path {f}/none.npz --model Parts-S", 1, "none.npz does not exist"),
        (
            train,
            "--data-path {set} --model Parts-S --eval-features inception",
            2,
            "--eval-features inception is for images, not for shapes",
        ),
        (train, "--data-path {set} --model Parts-S --eval-weights {f}/w.pt", 2, "--eval-weights .*w.pt is for images"),
        (train, "--data-path {set} --model Parts-S --eval-every 5 --eval-samples 1", 2, "--eval-samples 1 is too few"),
        (
            train,
            "--data-path {set} --model Parts-XS --global-batch-size 8 --eval-every 5 --eval-reference digits",
            1,
            "file of shapes digits does not exist",
        ),
        (train, "--data-path {set} --model Parts-S --combostoc-type UNSYNC_PATCH", 2, "UNSYNC_PATCH is for images"),
        (
            train,
            "--data-path digits --vae none --image-size 8 --combostoc-type UNSYNC_PART",
            2,
            "UNSYNC_PART is for shapes",
        ),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0", 2, "how much is kept"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:999 --preserve 1", 1, "few.npz has 120 shapes, 0 to 119"),
        (sample, "ODE --ckpt {ckpt} --reference a.png --preserve 1", 1, "--reference a.png does not exist"),
        (sample, "ODE --ckpt {ckpt} --reference {o}/a.png --preserve 1", 2, "a.png is no shape"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0 --preserve parts:99:1", 2, "parts 0 to .*, not 99"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0 --preserve colour:1", 2, "a part has exists, box.center"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0 --preserve parts:0:1.5", 2, "1.5 is not between 0 and 1"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0 --preserve x.png", 2, "neither a number nor items"),
        (sample, "ODE --ckpt {ckpt} --likelihood --data-path digits", 2, "Parts-XS does not make images"),
        (sample, "ODE --ckpt {ckpt} --glb {f}/none/a.glb", 2, "--glb .*does not exist"),
        (sample, "ODE --ckpt {ckpt} --class-labels 99", 2, "99 is out of range: the model has 0 to 5"),
        (sample, "ODE --ckpt {ckpt} --glb {f}/a.png", 2, "a.png must end in .glb"),
        (sample, "ODE --ckpt {ckpt} --glb .", 2, "--glb . must end in .glb"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0 --preserve left:0.9", 2, "a part has exists, .* not left"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0 --preserve 1 --preserve-channels 1,1", 2, "how much is kept"),
        (sample, "ODE --ckpt {ckpt} --reference {o}/images.npz:0 --preserve 1", 1, "images.npz is not an .npz of sha"),
        (
            sample,
            "ODE --ckpt {ckpt} --reference {o}/boxes.npz:3 --preserve 1",
            1,
            r"--reference .*boxes.npz:3: a shape has the attributes box.center \(3\), .*, not .*code.exponents \(2\)",
        ),
        (sample, "ODE --ckpt {o}/two.pt --reference {set}:5 --preserve 1", 1, "few.npz:5: .* more than the model's 2"),
        (
            sample,
            "ODE --ckpt {image} --reference shapes:3 --preserve 0.5",
            2,
            "shapes:3 is no picture; .* makes images",
        ),
        (sample, "ODE --ckpt {image} --glb {f}/a.glb", 2, "a.glb is for shapes; ComboStoc-XS/4 makes images"),
        (sample, "ODE --ckpt {image} --likelihood --data-path {set}", 2, "takes images; .*few.npz holds shapes"),
        (sample_ddp, "ODE --ckpt {ckpt} --likelihood --data-path shapes", 2, "takes images; .*shapes holds shapes"),
        (train, "--data-path {set} --ckpt {image}", 2, "ComboStoc-XS/4 does not fit --data-path .*holds shapes"),
        (train, "--data-path digits --ckpt {ckpt}", 2, "Parts-XS does not fit --data-path digits"),
        (train, "--data-path {set} --ckpt {o}/two.pt", 1, "few.npz does not fit checkpoint .*two.pt: .* the model's 2"),
        (train, "--data-path {o}/boxes.npz --ckpt {ckpt}", 1, "boxes.npz does not fit checkpoint .*: a shape has the"),
        (train, "--data-path {set} --model Parts-XS --num-classes 5", 2, "5 is less than the data's 6 classes"),
        (train, "--data-path {o}/images.npz --model Parts-XS", 1, r"images.npz holds images \(arr_0 .*\), no shapes"),
        (
            train,
            "--data-path {o}/one.npz --model Parts-XS --preset fast-async",
            2,
            "--difficulty 0.01 is for --prediction velocity, .* which --preset fast-async has",
        ),
        (extract_latents, "--data-path {set} --out {f}/latents", 2, "few.npz holds shapes"),
        (evaluate, "{o}/images.npz {set}", 1, "images.npz is not an .npz of shapes: it lacks"),
        (evaluate, "{set} {o}/images.npz", 1, "images.npz is not an .npz of shapes: it lacks"),
        (evaluate, "{set} {o}/one.npz", 1, "reference: 1 shapes; two or more are needed"),
        (evaluate, "{set} {set} --image-size 8", 2, "--image-size 8 is for images"),
        (evaluate, "{set} shapes --features efficientnet-lite0", 2, "--features efficientnet-lite0 is for images"),
        (evaluate, "{set} {set} --compared 1", 2, "--compared: 1 is less than 2"),
        (evaluate, "{set} digits", 1, "digits"),
        (evaluate, "{set} --save-stats {f}/s.npz", 2, "give a REFERENCE"),
    ],
)
def test_mistakes_end_in_one_line(
    program, arguments, code, line, tmp_path, trained, chairs, others, monkeypatch, capsys
):
    monkeypatch.setattr("sys.argv", [f"{program.__name__}.py"])
    monkeypatch.chdir(tmp_path)
    image = others / "ComboStoc-XS-4-x" / "ckpt.pt"
    words = arguments.format(f=tmp_path, set=chairs, ckpt=trained, o=others, image=image).split()
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: program.main(words))
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == code and re.search(line, message), message
    assert not list(tmp_path.iterdir())
