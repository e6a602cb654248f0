"""Structured shapes through the programs: what holds for images holds for them."""

import json
import re
from dataclasses import replace

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
from data.shapes import furniture, load_shapes, save_shapes
from runtime import checkpoint
from runtime.errors import run_program
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
    assert (args["combostoc_type"], args["times"], args["halfmixing"]) == ("UNSYNC_ATT_PART", "uniform", "off")
    assert args["prediction"] == "data" and content["class_names"] == load_shapes(chairs).class_names
    assert content["layout"]["names"] == ["box.center", "box.size", "box.axes", "code.exponents"]
    with Image.open(trained.parent / "samples" / "0000004.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 50
    assert "102 images in 6 classes" in (trained.parent / "log.txt").read_text()  # of 120 those that are for training


@pytest.mark.parametrize("kind", ["UNSYNC_NONE", "UNSYNC_PART", "UNSYNC_ALL"])
def test_a_run_continues_as_if_never_stopped(tmp_path, chairs, kind):
    flags = ("--combostoc-type", kind, "--grad-accum", "2")
    whole = run(tmp_path, chairs, *flags, exp="whole")
    run(tmp_path, chairs, *flags, steps=2, exp="parts")
    parts = run(tmp_path, chairs, exp="parts")  # without being told again
    a, b = (tensors_of(folder / "ckpt.pt") for folder in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("path", ["Linear", "GVP", "VP"])
@pytest.mark.parametrize("prediction", ["data", "velocity"])
@pytest.mark.parametrize("kind", ["NONE", "PART", "ATT", "ATT_PART", "VEC", "ALL"])
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
    kept, parts = {}, sample.parts

    def sheet(control, samples, *rest):
        kept.update(references=control.shapes, samples=samples, keep=control.keep)
        return original(control, samples, *rest)

    original = parts.sheet
    monkeypatch.setattr(parts, "sheet", sheet)
    flags = ["--reference", f"{chairs}:0", "shapes:7", "--variations", "2"]
    sampled(trained, tmp_path / "a.png", *flags, "--preserve", "parts:0,2:1")
    for k, made in enumerate(kept["samples"]):
        shape = kept["references"][k // 2]
        assert all(np.allclose(made[name][0], shape[name][0], atol=1e-5) for name in shape)
    sampled(trained, tmp_path / "b.png", *flags, "--preserve", "exists:1,box.size:1,code:0.5")
    for k, made in enumerate(kept["samples"]):
        shape = kept["references"][k // 2]
        count = len(shape["box.size"])
        assert np.allclose(made["box.size"][:count], np.maximum(shape["box.size"], 1e-3), atol=1e-5)
        assert not np.allclose(made["box.center"][:count], shape["box.center"], atol=1e-2)
    assert set(kept["keep"].unique().tolist()) == {0.0, 0.5, 1.0}


@pytest.fixture(scope="module")
def others(tmp_path_factory, trained, chairs):
    """Files that do not fit: an image model and its samples, shapes without codes, a model of few parts."""
    folder = tmp_path_factory.mktemp("others")
    digits = [*DIGITS_ARGS, "--max-steps", "1", "--results-dir", str(folder), "--exp", "x", "--sample-every", "0"]
    train.main(digits)
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
    assert "000003.npy is damaged" in said.err and "8 of 10 images are there" in said.out
    after = load_shapes(one)
    assert before and all(np.allclose(after.attributes[n], a.attributes[n], atol=1e-3) for n in a.attributes)


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
        (train, "--data-path {set} --model Parts-S --eval-every 5", 2, "--eval-every 5 is for images"),
        (train, "--data-path {set} --model Parts-S --combostoc-type UNSYNC_PATCH", 2, "UNSYNC_PATCH is for images"),
        (
            train,
            "--data-path digits --vae none --image-size 8 --combostoc-type UNSYNC_PART",
            2,
            "UNSYNC_PART is for shapes",
        ),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0", 2, "how much is kept"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:999 --preserve 1", 1, "few.npz has 120 shapes, 0 to 119"),
        (sample, "ODE --ckpt {ckpt} --reference a.png --preserve 1", 2, "a.png is no shape"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0 --preserve parts:99:1", 2, "parts 0 to .*, not 99"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0 --preserve colour:1", 2, "a part has exists, box.center"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0 --preserve parts:0:1.5", 2, "1.5 is not between 0 and 1"),
        (sample, "ODE --ckpt {ckpt} --reference {set}:0 --preserve x.png", 2, "neither a number nor items"),
        (sample, "ODE --ckpt {ckpt} --likelihood --data-path digits", 2, "Parts-XS is a model of shapes"),
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
        (sample, "ODE --ckpt {image} --reference shapes:3 --preserve 0.5", 2, "shapes:3 is a shape; .* makes images"),
        (sample, "ODE --ckpt {image} --glb {f}/a.glb", 2, "a.glb is for shapes; ComboStoc-XS/4 makes images"),
        (sample, "ODE --ckpt {image} --likelihood --data-path {set}", 2, "takes images; .*few.npz holds shapes"),
        (sample_ddp, "ODE --ckpt {ckpt} --likelihood --data-path shapes", 2, "takes images; .*shapes holds shapes"),
        (train, "--data-path {set} --ckpt {image}", 2, "ComboStoc-XS/4 does not fit --data-path .*of shapes"),
        (train, "--data-path digits --ckpt {ckpt}", 2, "Parts-XS does not fit --data-path digits"),
        (train, "--data-path {set} --ckpt {o}/two.pt", 1, "few.npz does not fit checkpoint .*two.pt: .* the model's 2"),
        (train, "--data-path {o}/boxes.npz --ckpt {ckpt}", 1, "boxes.npz does not fit checkpoint .*: a shape has the"),
        (train, "--data-path {set} --model Parts-XS --num-classes 5", 2, "5 is less than the data's 6 classes"),
        (train, "--data-path {o}/images.npz --model Parts-XS", 1, "images.npz is not an .npz of shapes: it lacks"),
        (train, "--data-path {o}/one.npz --model Parts-XS --num-classes 6", 1, "fewer than one global batch of 256"),
        (extract_latents, "--data-path {set} --out {f}/latents", 2, "few.npz holds shapes, which are not encoded"),
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
