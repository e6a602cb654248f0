"""Files that an older version wrote: they load, and what was trained goes on."""

import json
import shutil

import kinds
import train
from data.latents import CachedLatents, is_extraction
from runtime import checkpoint
from tests.conftest import DIGITS_ARGS, ROOT
from training.arguments import make_parser, resolve_arguments

RECORDS = ROOT / "tests" / "records"
KEYS = {"model", "ema", "opt", "step", "args", "class_names", "progress"}
PROGRESS = {"window", "bad_steps", "unreadable", "images_seen", "data"}


# Of the run that was recorded.
TYPED = "data_path image_size num_classes vae model combostoc_type num_workers max_steps global_batch_size exp".split()
TYPED += ["results_dir", "log_every", "sample_every"]


def test_every_argument_of_before_is_still_there_with_its_default():
    then = json.loads((RECORDS / "args.json").read_text())
    args = make_parser().parse_args(["--data-path", "digits"])
    args = resolve_arguments(args, 1, kinds.of_data(args.data_path))
    now = vars(args)
    assert then.keys() <= now.keys()
    assert {k: now[k] for k in then if k not in TYPED} == {k: then[k] for k in then if k not in TYPED}


def test_a_checkpoint_of_before_continues(trained, tmp_path):
    content = checkpoint.load(trained / "ckpt.pt")
    assert content.keys() == KEYS and content["progress"].keys() == PROGRESS
    content["args"] = json.loads((RECORDS / "args.json").read_text())
    checkpoint.save(tmp_path / "old.pt", content)
    args = [*DIGITS_ARGS, "--ckpt", str(tmp_path / "old.pt"), "--results-dir", str(tmp_path), "--sample-every", "0"]
    train.main([*args, "--max-steps", "21"])
    log = (tmp_path / "ComboStoc-XS-4-exp_tmp" / "log.txt").read_text()
    assert "from step 20 to 21" in log and "Done" in log


def test_latents_of_before_are_trained_on(tmp_path):
    shutil.copytree(RECORDS / "latents", tmp_path / "latents")
    assert is_extraction(str(tmp_path / "latents"))
    latents = CachedLatents(str(tmp_path / "latents"))
    assert (len(latents), latents.class_names, latents.latent_shape) == (4, ["a", "b"], (4, 4, 4))
    args = ["--data-path", str(tmp_path / "latents"), "--num-classes", "2", "--model", "ComboStoc-XS/2"]
    args += ["--global-batch-size", "2", "--num-workers", "0", "--sample-every", "0", "--max-steps", "2"]
    train.main([*args, "--results-dir", str(tmp_path)])
    assert checkpoint.load(tmp_path / "ComboStoc-XS-2-exp_tmp" / "ckpt.pt")["step"] == 2
