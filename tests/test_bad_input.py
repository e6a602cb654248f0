"""Mistakes end in one line that names the value and what is accepted, and leave nothing behind."""

import re
import sys
import tarfile

import pytest
import torch
from PIL import Image

import extract_latents
import sample
import sample_ddp
import train
from models import ComboStoc_models, SiT_models
from runtime.errors import run_program
from tests.conftest import DIGITS_ARGS, run_cli
from tests.faults import launch
from tests.forked import run_forked

MAIN = {
    "train": train.main,
    "sample": sample.main,
    "sample_ddp": sample_ddp.main,
    "extract_latents": extract_latents.main,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files and folders that are not what they should be."""
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    (root / "latents").mkdir()
    (root / "latents" / "extraction.json").write_text("{}")
    (root / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(root / "flat" / "a.png")
    (root / "hollow" / "class").mkdir(parents=True)
    (root / "few" / "class").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "few" / "class" / "a.png")
    nan = root / "nan.pt"
    four = SiT_models["SiT-XS/4"](input_size=8, in_channels=4, num_classes=10).state_dict()
    torch.save(four, root / "four.pt")
    (root / "page.pt").write_text("<!DOCTYPE html><html></html>")
    good = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=1, num_classes=10).state_dict()
    torch.save(good, root / "good.pt")
    torch.save(SiT_models["SiT-XS/4"](input_size=8, in_channels=1, num_classes=10).state_dict(), root / "sit.pt")
    torch.save({"w": torch.ones(3)}, root / "alien.pt")
    torch.save({"model": good, "ema": good, "class_names": ["other"]}, root / "named.pt")
    late = {"model": good, "ema": good, "opt": {"state": {}, "param_groups": [{"params": list(range(len(good)))}]}}
    torch.save(late | {"step": 500}, root / "late.pt")
    torch.save({"ema": good, "args": {"model": "ComboStoc-XS/4", "combostoc_type": "UNSYNC_ALL"}}, root / "args.pt")
    torch.save({k: v for k, v in good.items() if "fc1" not in k}, root / "partial.pt")
    (root / "truncated.pt").write_bytes((root / "good.pt").read_bytes()[:5000])
    torch.save(good | {"final_layer.linear.bias": torch.full_like(good["final_layer.linear.bias"], torch.nan)}, nan)
    with tarfile.open(root / "good.tar", "w") as archive:
        archive.add(root / "flat")
    return root


CASES = [
    # program, arguments, exit code, what the line says
    ("train", "--data-path {f}/absent", 1, "absent does not exist"),
    ("train", "--data-path {f}/empty", 1, "empty has no sub-folders"),
    ("train", "--data-path {f}/hollow", 1, "class holds no images"),
    ("train", "--model ComboStoc-XXL/2", 2, r"unknown model 'ComboStoc-XXL/2'.*SiT}-{XL,L,B,S,XS}/\{1,2,4,8,16,32}"),
    ("train", "--path-type linear", 2, "'linear'.*Linear.*GVP.*VP"),
    ("train", "--image-size 10", 2, "--image-size 10 is not a multiple of 4"),
    ("train", "--num-classes 9", 2, "--num-classes 9 is less than the data's 10 classes"),
    (
        "train",
        "--model SiT-XS/4 --combostoc-type UNSYNC_ALL",
        2,
        "UNSYNC_ALL needs a ComboStoc model; SiT-XS/4 takes UNSYNC_NONE",
    ),
    ("train", "--model SiT-XS/4 --blend off", 2, "--blend off is for asynchronous times, not for UNSYNC_NONE"),
    ("train", "--vae {f}/empty", 1, "neither ema, mse, none nor a diffusers folder"),
    ("train", "--eval-every 5 --eval-samples 0", 2, "0 is not a positive whole number"),
    ("train", "--eval-every 5 --eval-weights {f}/truncated.pt", 1, "weights of inception from .*truncated.pt cannot"),
    (
        "train",
        "--eval-every 5 --eval-features efficientnet-lite0 --eval-reference {f}/a.npz",
        1,
        "a.npz does not exist",
    ),
    ("train", "--ckpt {f}/truncated.pt", 1, "truncated.pt cannot be read"),
    ("train", "--ckpt {f}/alien.pt", 1, "alien.pt holds no SiT, ComboStoc or Parts model"),
    ("train", "--ckpt {f}/sit.pt", 2, "sit.pt holds .*SiT-XS/4.*ComboStoc-XS/4"),
    ("train", "--ckpt {f}/good.pt --image-size 16", 2, "inputs of 1 x 8 x 8 .* describe .* 1 x 16 x 16"),
    ("train", "--ckpt {f}/partial.pt", 1, "partial.pt lacks blocks.0.mlp.fc1"),
    ("train", "--global-batch-size 0", 2, "0 is not a positive whole number"),
    ("train", "--log-every -1", 2, "-1 is negative"),
    ("train", "--lr 0", 2, "0 is not a positive number"),
    ("train", "--ema-decay 1", 2, r"1 is not in \[0, 1\)"),
    ("train", "--train-eps 0.9", 2, "--train-eps must be a number in .*0.9"),
    (
        "train",
        "--data-path {f}/few --ckpt {f}/named.pt --vae none --global-batch-size 1",
        2,
        "holds .* 1 x 8 x 8.* 3 x 8",
    ),
    (
        "train",
        "--ckpt {f}/args.pt --model SiT-XS/4",
        2,
        "--model SiT-XS/4, but .*args.pt holds ComboStoc-XS/4",
    ),
    ("train", "--ckpt {f}/named.pt", 2, "trained on 1 classes, other .*; --data-path digits has 10, 0"),
    ("train", "--ckpt {f}/late.pt", 2, "late.pt is at step 500, beyond the 1 of"),
    ("train", "--results-dir {f}/good.pt", 1, "good.pt.*Not a directory"),
    ("train", "--precision fp16", 2, "'fp16'.*fp32.*tf32.*bf16"),
    (
        "train",
        "--grad-accum 3",
        2,
        r"--global-batch-size 16 is not divisible by 3, the processes \(1\) times --grad-accum 3",
    ),
    ("train", "--encode-bf16", 2, "--encode-bf16 is for an autoencoder; --vae none encodes nothing"),
    ("train", "--max-grad-norm 0", 2, "0 is not a positive number"),
    ("train", "--data-path {f}/latents", 1, r"the extraction to .*latents is not finished: run extract_latents\.py"),
    ("train", "--lerning-rate 1", 2, r"--lerning-rate 1 \(see \S+ --help\)"),
    ("train", "--exp ../../x", 2, "argument --exp: '../../x' cannot be part of a folder's name"),
    ("train", "--exp=", 2, "argument --exp: '' cannot be part of a folder's name"),
    ("train", "--wandb", 2, "environment variable ENTITY"),
    ("sample", "", 2, "{ODE,SDE}"),
    ("sample", "ODE --sede 1", 2, r"unrecognized arguments: --sede 1 \(see \S+ ODE --help\)"),
    ("sample", "ODE --model ComboStoc-XL/2", 2, "--model ComboStoc-XL/2 has no published weights: give --ckpt FILE"),
    ("sample", "ODE --ckpt {f}/absent.pt", 1, "absent.pt does not exist"),
    ("sample", "ODE --ckpt {f}/good.pt --model SiT-XS/4", 2, "--model SiT-XS/4 contradicts .*ComboStoc-XS/4"),
    ("sample", "ODE --ckpt {f}/good.pt --image-size 16", 2, "--image-size 16 contradicts .* 8"),
    ("sample", "ODE --ckpt {f}/good.pt --image-size 9", 2, "--image-size 9 is not a multiple of 4"),
    ("sample", "ODE --ckpt {f}/good.pt --num-classes 1000", 2, "--num-classes 1000 contradicts .* 10"),
    ("sample", "ODE --ckpt {f}/good.pt --class-labels 3 10", 2, "class label 10 is out of range: the model has 0 to 9"),
    ("sample", "SDE --ckpt {f}/good.pt --sampling-method euler", 2, "'euler'.*Euler.*Heun"),
    ("sample", "SDE --ckpt {f}/good.pt --last-step-size 1.5", 2, "last step size must lie in .*1.5"),
    ("sample", "SDE --ckpt {f}/good.pt --diffusion-norm -1", 2, "diffusion norm .* not negative, got -1"),
    ("sample", "ODE --ckpt {f}/good.pt --num-sampling-steps 1", 2, "at least 2.*got 1"),
    ("sample", "ODE --ckpt {f}/good.pt --cfg-scale 0.5", 2, "0.5 is less than 1"),
    ("sample", "ODE --ckpt {f}/good.pt --out {f}/no/where.png", 2, "no does not exist"),
    ("sample", "ODE --ckpt {f}/good.pt --out a.jpg", 2, "a.jpg must end in .png"),
    ("sample", "ODE --ckpt {f}/good.pt --likelihood", 2, "give --data-path"),
    ("sample", "ODE --ckpt {f}/good.pt --likelihood --reverse --data-path digits", 2, "two different jobs"),
    ("sample", "ODE --ckpt {f}/good.pt --likelihood --data-path digits --cfg-scale 4", 2, "without guidance"),
    ("sample", "ODE --ckpt {f}/good.pt --likelihood --data-path {f}/absent", 1, "absent does not exist"),
    ("sample", "ODE --ckpt {f}/sit.pt --likelihood --data-path {f}/few", 2, "has 1 classes, the model 10"),
    ("sample", "ODE --ckpt {f}/good.pt --data-path digits", 2, "--data-path digits is for --likelihood and --reverse"),
    (
        "sample",
        "ODE --ckpt {f}/good.pt --reverse --data-path digits --class-labels 1",
        2,
        "--class-labels are for sampl",
    ),
    ("sample", "ODE --ckpt {f}/good.pt --guidance-interval 0.8 0.2", 2, "0.8 0.2 is empty: LO must not be greater"),
    ("sample", "ODE --ckpt {f}/good.pt --guidance-interval 0 2", 2, r"2 is not in \[0, 1]"),
    ("sample", "ODE --ckpt {f}/good.pt --likelihood --data-path digits --precision bf16", 2, "give tf32 or fp32"),
    ("sample", "ODE --ckpt {f}/good.pt --likelihood --data-path {f}/latents", 2, "holds cached latents"),
    ("extract_latents", "--data-path {f}/flat --out {f}/out --vae {f}/empty", 1, "neither ema, mse, none nor a diff"),
    ("extract_latents", "--data-path {f}/flat --out {f}/out --vae none", 2, "has no latents to extract"),
    ("extract_latents", "--data-path {f}/flat", 2, "--out"),
    ("sample_ddp", "ODE --ckpt {f}/good.pt --data-path digits", 2, "--data-path digits is for --likelihood"),
    ("sample", "SDE --ckpt {f}/good.pt --reverse", 2, "--reverse"),
    ("sample_ddp", "ODE --ckpt {f}/good.pt --num-fid-samples 0", 2, "0 is not a positive whole number"),
    ("sample", "ODE --ckpt {f}/good.pt --class-labels dog", 2, "class label dog is unknown: the model has 0 to 9"),
    ("sample", "ODE --ckpt {f}/good.pt --class-labels 3 --cfg-scale 0", 2, "0 samples without a class.*3 of one"),
    ("sample", "ODE --ckpt {f}/good.pt --class-labels null --cfg-scale 4", 2, "--cfg-scale 4 guides towards a class"),
    ("sample", "ODE --ckpt {f}/four.pt --vae none", 2, "--vae none shows pixels; the 4 channels of .*four.pt are lat"),
    # what is there in place of a checkpoint or of images
    ("train", "--ckpt {f}/few", 1, "few is a folder; it holds no .pt or .safetensors"),
    ("train", "--init-from {f}", 1, "is a folder; give a file in it, such as .*.pt"),
    ("sample", "ODE --ckpt {f}", 1, "is a folder; give a file in it, such as .*.pt"),
    ("sample_ddp", "ODE --ckpt {f}/page.pt", 1, "page.pt cannot be read: it is a web page"),
    ("train", "--data-path {f}/page.pt", 1, "page.pt is a file, a web page.*; a folder of images is needed"),
    ("train", "--data-path {f}/good.tar", 1, "good.tar is a file, a tar archive: unpack it; a folder of images is"),
    ("sample", "ODE --ckpt {f}/good.pt --reverse --data-path {f}/good.tar", 1, "good.tar is a file, a tar archive"),
    ("train", "--eval-every 5 --eval-weights {f}/page.pt", 1, "page.pt cannot be used: it is a web page"),
    (
        "train",
        "--eval-every 5 --eval-features efficientnet-lite0 --eval-reference {f}/good.pt",
        1,
        "good.pt is no .npz file but a PyTorch checkpoint",
    ),
    # no black pictures
    ("sample", "ODE --ckpt {f}/nan.pt", 1, "dopri5 cannot take its step .* not finite"),
    ("sample", "SDE --ckpt {f}/nan.pt --num-sampling-steps 3", 1, "40 of 40 pictures are not finite"),
    ("sample", "ODE --ckpt {f}/nan.pt --reference {f}/flat/a.png --preserve 0.5", 1, "dopri5 cannot take its step"),
    (
        "sample",
        "SDE --ckpt {f}/nan.pt --num-sampling-steps 3 --reference {f}/flat/a.png --preserve 0.5",
        1,
        "4 of 4 pictures are not finite",
    ),
    (
        "sample",
        "ODE --ckpt {f}/nan.pt --likelihood --data-path {f}/flat --sampling-method euler --num-sampling-steps 3",
        1,
        "likelihoods of 1 of 1 images are not finite",
    ),
    (
        "sample",
        "ODE --ckpt {f}/nan.pt --reverse --data-path {f}/flat --sampling-method euler --num-sampling-steps 3",
        1,
        "noise of the images is not finite",
    ),
    ("sample_ddp", "ODE --ckpt {f}/nan.pt --sample-dir .", 1, "dopri5 cannot take its step"),
    (
        "sample_ddp",
        "SDE --ckpt {f}/nan.pt --num-sampling-steps 3 --num-fid-samples 6 --sample-dir .",
        1,
        "of . pictures are not finite",
    ),
    (
        "sample_ddp",
        "ODE --ckpt {f}/nan.pt --likelihood --data-path {f}/flat --sampling-method heun2 --num-sampling-steps 3",
        1,
        "likelihoods of 1 of 1 images are not finite",
    ),
]


@pytest.mark.parametrize(("program", "arguments", "code", "line"), CASES)
def test_one_line_and_nothing_left(program, arguments, code, line, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{program}.py"])
    for variable in ("WANDB_KEY", "ENTITY", "PROJECT", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    argv = arguments.format(f=files).split()
    if program == "train":
        argv = [*DIGITS_ARGS, "--max-steps", "1", *argv]
    with pytest.raises(SystemExit) as exit_:
        run_program(lambda: MAIN[program](argv))
    message = capsys.readouterr().err
    assert exit_.value.code == code, message
    assert message.count("\n") == 1 and message.startswith(f"{program}.py"), message
    assert re.search(line, message), message
    assert list(tmp_path.iterdir()) == []


def test_two_processes_end_alike_where_samples_are_not_finite(files, tmp_path):
    args = ["SDE", "--ckpt", str(files / "nan.pt"), "--num-sampling-steps", "3", "--num-fid-samples", "16"]
    args += ["--sample-dir", str(tmp_path / "samples")]
    assert launch(args, tmp_path / "output", world_size=2, program="sample_ddp") == [1, 1]
    assert "4 of 4 pictures are not finite" in (tmp_path / "output").read_text()
    assert not list((tmp_path / "samples").rglob("*.png")) and not list((tmp_path / "samples").rglob("*.npz"))


def test_the_same_from_a_shell(tmp_path):
    result = run_cli("sample.py", "ODE", "--ckpt", "absent.pt", cwd=tmp_path, check=False)
    assert result.returncode == 1 and result.stdout == "" and list(tmp_path.iterdir()) == []
    assert result.stderr.startswith("sample.py: error: ") and result.stderr.count("\n") == 1


def test_a_batch_not_divisible_by_the_processes(tmp_path):
    args = [*DIGITS_ARGS, "--global-batch-size", "15"]
    result = run_forked("train.py", *args, processes=2, cwd=tmp_path, check=False)
    assert result.returncode == 1
    line = "train.py: error: --global-batch-size 15 is not divisible by 2, the processes (2) times --grad-accum 1"
    assert result.stderr.count(line) == 1
    assert list(tmp_path.iterdir()) == []


IN_DRILL = [pytest.param(*case, marks=pytest.mark.drill) for case in (("0", 1), ("0", 2))]


@pytest.mark.parametrize(("workers", "processes"), [("2", 1), *IN_DRILL])
def test_a_broken_picture_is_named_without_a_traceback(workers, processes, tmp_path):
    (tmp_path / "data" / "class").mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / "class" / f"{i}.png")
    for i in (4, 5):  # one would be allowed
        (tmp_path / "data" / "class" / f"{i}.png").write_bytes(b"not a picture")
    args = [*DIGITS_ARGS, "--data-path", str(tmp_path / "data"), "--global-batch-size", "6", "--num-workers", workers]
    args += ["--results-dir", str(tmp_path / "results")]
    assert launch(args, tmp_path / "output", world_size=processes) == [1] * processes
    output = (tmp_path / "output").read_text()
    lines = {line for line in output.splitlines() if line.startswith("train.py: error: ")}
    assert len(lines) == 1 and "Traceback" not in output
    (line,) = lines
    assert "2 of 6 images cannot be read, more than --max-bad-images 0.001 allows; the last: image " in line
    assert "5.png cannot be read" in line or "4.png cannot be read" in line


def test_a_mistake_all_processes_make_is_said_once(tmp_path):
    args = ["--data-path", tmp_path / "absent", "--vae", "none", "--global-batch-size", "4"]
    result = run_forked("train.py", *args, processes=2, cwd=tmp_path, check=False)
    assert result.stderr.count("absent does not exist") == 1
