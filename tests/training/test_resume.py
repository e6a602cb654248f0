import os
import shutil

import numpy as np
import pytest
import torch

import sample
import train
from data import autoencoder
from data.sets import ImageFolder
from models import ComboStoc_models, SiT_models
from runtime import checkpoint
from runtime.errors import DataError, UsageError
from tests.faults import NAME, RUN, Fault, differences, launch, metrics

# ---- steps that are not finite -------------------------------------------------------------------------------------


def test_an_infinite_loss_of_one_process_is_skipped_by_all(tmp_path):
    argv = [*RUN, "--max-steps", "12", "--results-dir", str(tmp_path)]
    fault = Fault("infinite loss", "begin", 7, rank=1)
    assert launch(argv, tmp_path / "output", world_size=2, fault=fault) == [0, 0], (tmp_path / "output").read_text()
    assert [row["bad_steps"] for row in metrics(tmp_path / NAME)] == ["0", "0", "1", "1"]
    assert all(0 < float(row["loss"]) < 5 for row in metrics(tmp_path / NAME))
    content = checkpoint.load(tmp_path / NAME / "ckpt.pt")
    assert content["opt"]["state"][1]["step"] == 11 and content["step"] == 12
    assert "1 bad steps skipped" in (tmp_path / NAME / "log.txt").read_text()


def test_too_many_bad_steps_end_the_run_and_leave_the_last_good_checkpoint(tmp_path):
    """A learning rate that blows the weights up in the first step."""
    flags = ["--lr", "1e30", "--max-bad-steps", "5", "--reckpt-every", "1", "--results-dir", str(tmp_path)]
    assert launch([*RUN, *flags], tmp_path / "output") == [1]
    output = (tmp_path / "output").read_text()
    line = "train.py: error: loss or gradients were not finite in 5 steps in a row (--max-bad-steps), up to step 6; "
    assert line in output and "Traceback" not in output
    assert checkpoint.load(tmp_path / NAME / "ckpt.pt")["step"] == 1
    assert "Not saved at step 3, which was a bad one" in output


def test_a_run_that_fails_before_its_first_checkpoint_is_not_sent_to_one(tmp_path):
    with pytest.raises(DataError, match=r"not finite .* up to step 6; no checkpoint was saved before that$"):
        train.main([*RUN, "--lr", "1e30", "--max-bad-steps", "5", "--results-dir", str(tmp_path)])


# ---- weights alone ---------------------------------------------------------------------------------------------------


def begin(tmp_path, *args: str, exp: str = "x"):
    train.main([*RUN, "--max-steps", "1", "--results-dir", str(tmp_path), "--exp", exp, *map(str, args)])
    (folder,) = tmp_path.glob(f"*-{exp}")
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The checkpoint of a run of one step: for reading."""
    return begin(tmp_path_factory.mktemp("begun")) / "ckpt.pt"


def random_weights(path, model, **settings):
    torch.manual_seed(3)
    model = model(in_channels=1, **settings)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    torch.save(model.state_dict(), path)
    return model.state_dict()


def test_init_from_takes_what_fits_and_names_what_does_not(tmp_path):
    """Another number of classes, and a fresh run: step 0, a fresh optimiser, the command line's settings."""
    state = random_weights(tmp_path / "a.pt", ComboStoc_models["ComboStoc-XS/4"], input_size=8, num_classes=7)
    folder = begin(tmp_path, "--init-from", tmp_path / "a.pt", "--lr", "1e-12", "--ema-decay", "0.5")
    content = checkpoint.load(folder / "ckpt.pt")
    assert content["step"] == 1 and content["args"]["lr"] == 1e-12
    for part in ("model", "ema"):
        same = {
            k: torch.allclose(v, state[k], atol=1e-9) for k, v in content[part].items() if v.shape == state[k].shape
        }
        assert all(same.values()) and len(same) == len(state) - 1
    log = (folder / "log.txt").read_text()
    table = "y_embedder.embedding_table.weight"
    assert f"{len(state) - 1} of the model's {len(state)} tensors taken" in log
    assert f"Warning: {table} is (8, 96) in the file, (11, 96) in the model: initialised" in log
    assert log.count("Warning") == 1


def test_a_lightning_checkpoint_begins_a_run(tmp_path):
    state = random_weights(tmp_path / "a.pt", ComboStoc_models["ComboStoc-XS/4"], input_size=8, num_classes=10)
    wrapped = {"epoch": 3, "state_dict": {f"net.module.{k}": v for k, v in state.items()}}
    torch.save(wrapped, tmp_path / "l.ckpt")
    for flag in ("--init-from", "--ckpt"):
        folder = begin(tmp_path, flag, tmp_path / "l.ckpt", "--lr", "1e-12", exp=flag.strip("-"))
        content = checkpoint.load(folder / "ckpt.pt")
        assert content["step"] == 1 and "Warning" not in (folder / "log.txt").read_text()
        for part in ("model", "ema"):
            assert all(torch.allclose(v, state[k], atol=1e-9) for k, v in content[part].items())


def test_init_from_another_resolution_and_family(tmp_path):
    random_weights(tmp_path / "sit.pt", SiT_models["SiT-XS/4"], input_size=16, num_classes=10)
    log = (begin(tmp_path, "--init-from", tmp_path / "sit.pt") / "log.txt").read_text()
    assert "Warning: pos_embed is (1, 16, 96) in the file, (1, 4, 96) in the model: initialised" in log
    assert "Warning: t_embedder.patchEmb.proj.weight is not in the file: initialised" in log
    sit = begin(tmp_path, "--init-from", tmp_path / "sit.pt", "--model", "SiT-XS/4", exp="sit")
    assert (sit / "log.txt").read_text().count("Warning") == 1


def test_init_from_is_for_the_beginning(tmp_path):
    """The same command again continues the run that it has begun."""
    random_weights(tmp_path / "a.pt", ComboStoc_models["ComboStoc-XS/4"], input_size=8, num_classes=10)
    begin(tmp_path, "--init-from", tmp_path / "a.pt")
    folder = begin(tmp_path, "--init-from", tmp_path / "a.pt", "--max-steps", "2")
    log = (folder / "log.txt").read_text()
    assert "continuing" in log and f"not --init-from {tmp_path / 'a.pt'}" in log and "from step 1 to 2" in log


def test_safetensors_hold_what_sampling_takes(tmp_path, capsys):
    """The averaged weights, with path, classes and sizes: the same picture, at a quarter of the size."""
    flags = ["--path-type", "GVP", "--ckpt-format", "safetensors", "--ckpt-every", "1", "--max-steps", "2"]
    folder = begin(tmp_path, *flags)
    kept = folder / "checkpoints" / "0000002.safetensors"
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["0000001.safetensors", kept.name]
    assert kept.stat().st_size < 0.3 * (folder / "ckpt.pt").stat().st_size
    settings = ["--sampling-method", "euler", "--num-sampling-steps", "3", "--class-labels", "3", "7"]
    for ckpt, out in ((folder / "ckpt.pt", "a.png"), (kept, "b.png")):
        sample.main(["ODE", "--ckpt", str(ckpt), *settings, "--out", str(tmp_path / out)])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_weights_alone_begin_at_step_0_whatever_step_they_are_of(tmp_path):
    folder = begin(tmp_path, "--ckpt-format", "safetensors", "--ckpt-every", "1")
    kept = folder / "checkpoints" / "0000001.safetensors"
    again = begin(tmp_path, "--ckpt", kept, exp="again")
    assert f"Continuing {kept} from step 0 to 1" in (again / "log.txt").read_text()


@pytest.mark.drill
def test_moments_in_another_memory_layout_are_the_same_moments(begun, tmp_path):
    """The fused kernel goes by the parameters' layout; files may come from anywhere."""
    content = checkpoint.load(begun)
    for moments in content["opt"]["state"].values():
        moments |= {k: v.t().contiguous().t() for k, v in moments.items() if v.ndim == 2}
    checkpoint.save(tmp_path / "turned.pt", content)
    flags = ["--max-steps", "2", "--log-every", "1"]
    for name, source in (("same", begun), ("turned", tmp_path / "turned.pt")):
        begin(tmp_path, "--ckpt", source, *flags, exp=name)
    assert differences(tmp_path / "ComboStoc-XS-4-same", tmp_path / "ComboStoc-XS-4-turned") == []


@pytest.mark.parametrize(
    "harm", ["shape", *(pytest.param(h, marks=pytest.mark.drill) for h in ("missing", "repeated"))]
)
def test_moments_that_do_not_fit_are_named(begun, tmp_path, harm):
    content = checkpoint.load(begun)
    moments = content["opt"]["state"][1]
    if harm == "missing":
        del content["opt"]["state"][1]
    else:
        moments["exp_avg"] = torch.zeros(3) if harm == "shape" else torch.zeros(1).expand(moments["exp_avg"].shape)
    checkpoint.save(tmp_path / "bad.pt", content)
    with pytest.raises(DataError, match=r"bad\.pt: its optimiser state does not fit"):
        begin(tmp_path, "--ckpt", tmp_path / "bad.pt", "--max-steps", "2", exp="bad")


def test_what_a_checkpoint_lacks_is_said(begun, tmp_path):
    """Without moments a run begins; without an average it goes on, and the average begins from what is trained."""
    content = checkpoint.load(begun)
    for name, harm, step, line in (
        ("no opt", {"opt": None}, 0, "holds no optimiser state ('opt'): its weights begin at step 0, and the 1 steps"),
        ("no state", {"opt": content["opt"] | {"state": {}}}, 1, "an optimiser without moments: they begin at zero"),
        ("no ema", {"ema": None}, 1, "holds no average: model is taken"),
        ("no model", {"model": None}, 1, "holds no weights but the average"),
    ):
        checkpoint.save(tmp_path / "a.pt", content | harm)
        again = begin(tmp_path, "--ckpt", tmp_path / "a.pt", "--max-steps", "2", exp=name.replace(" ", "-"))
        log = (again / "log.txt").read_text()
        assert line in log and f"from step {step} to 2" in log
        assert checkpoint.load(again / "ckpt.pt")["step"] == 2


def test_a_run_whose_own_checkpoint_was_stripped_is_not_begun_anew(tmp_path):
    path = begin(tmp_path) / "ckpt.pt"
    whole = checkpoint.load(path)
    for name in ("model", "ema", "opt"):
        checkpoint.save(path, whole | {name: None})
        before = path.read_bytes()
        with pytest.raises(DataError, match=rf"holds no '{name}', so that .*--init-from .*ckpt\.pt with a new --exp"):
            begin(tmp_path, "--max-steps", "2")
        assert path.read_bytes() == before


@pytest.mark.drill
def test_steps_of_any_kind_continue_to_the_same_bits(begun, tmp_path):
    content = checkpoint.load(begun)
    flags = ["--max-steps", "2", "--log-every", "1"]
    for name, number in (("same", lambda n: n), ("tensor", torch.tensor), ("numpy", np.float32)):
        moments = {k: m | {"step": number(int(m["step"]))} for k, m in content["opt"]["state"].items()}
        changed = {"opt": content["opt"] | {"state": moments}, "step": number(content["step"])}
        settings = {"global_batch_size": float(content["args"]["global_batch_size"]), "path_type": None}
        checkpoint.save(tmp_path / f"{name}.pt", content | changed | {"args": content["args"] | settings})
        begin(tmp_path, "--ckpt", tmp_path / f"{name}.pt", *flags, exp=name)
        assert differences(tmp_path / "ComboStoc-XS-4-same", tmp_path / f"ComboStoc-XS-4-{name}") == []


def test_what_is_no_float_weight_is_not_taken(tmp_path):
    state = random_weights(tmp_path / "a.pt", ComboStoc_models["ComboStoc-XS/4"], input_size=8, num_classes=10)
    counter = {"rope.index": torch.arange(4), "mask": torch.ones(2, dtype=torch.bool)}
    torch.save(state | counter | {"final_layer.linear.bias": torch.zeros(32, dtype=torch.int8)}, tmp_path / "a.pt")
    log = (begin(tmp_path, "--init-from", tmp_path / "a.pt") / "log.txt").read_text()
    assert "Warning: rope.index is not in the model: left out" in log
    assert "Warning: final_layer.linear.bias is int8 of shape (32,) in the file, no float weights: initialised" in log
    torch.save(state | counter, tmp_path / "a.pt")
    log = (begin(tmp_path, "--ckpt", tmp_path / "a.pt", exp="y") / "log.txt").read_text()
    assert "a.pt has rope.index, mask, which the model does not have: no weights, left aside" in log


def test_a_results_folder_that_is_not_utf8(tmp_path):
    root = tmp_path / os.fsdecode(b"r\xe9")
    root.mkdir()
    folder = begin(root, "--ckpt-format", "safetensors", "--ckpt-every", "1", "--eval-every", "0")
    begin(root, "--max-steps", "2")
    assert checkpoint.load(folder / "ckpt.pt")["step"] == 2
    assert "from step 1 to 2" in (folder / "log.txt").read_text()
    kept = folder / "checkpoints" / "0000001.safetensors"
    settings = ["--sampling-method", "euler", "--num-sampling-steps", "3", "--class-labels", "3"]
    sample.main(["ODE", "--ckpt", str(kept), *settings, "--out", str(root / "a.png")])
    assert (root / "a.png").is_file()


# ---- pictures that cannot be read ----------------------------------------------------------------------------------


@pytest.fixture
def pictures(image_folder, tmp_path):
    """Twelve pictures in a class, of which two are broken."""
    (tmp_path / "data" / "class").mkdir(parents=True)
    for k, path in enumerate(sorted(image_folder.rglob("*.png"))):
        (tmp_path / "data" / "class" / f"{k:02d}.png").write_bytes(path.read_bytes() if k not in (3, 4) else b"broken")
    return tmp_path / "data"


def test_pictures_that_cannot_be_read_are_named_counted_and_replaced(pictures, tmp_path):
    argv = [*RUN, "--data-path", str(pictures), "--global-batch-size", "6", "--num-classes", "1", "--max-steps", "8"]
    argv += ["--max-bad-images", "0.2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert launch([*argv, "--results-dir", str(whole)], whole / "output") == [0], (whole / "output").read_text()
    log = (whole / NAME / "log.txt").read_text()
    assert all(log.count(f"{name} cannot be read") == 1 for name in ("03.png", "04.png")), log
    for workers, fault in (("2", Fault("SIGKILL", "step", 6)), ("0", None)):
        argv_parts = [*argv, "--num-workers", workers, "--results-dir", str(parts)]
        launch(argv_parts, parts / "output", fault=fault)
    assert differences(whole / NAME, parts / NAME) == []
    assert checkpoint.load(parts / NAME / "ckpt.pt")["progress"]["unreadable"] == [3, 4]


def test_too_many_unreadable_pictures_stop_both_processes_with_everything_saved(pictures, tmp_path):
    argv = [*RUN, "--data-path", str(pictures), "--global-batch-size", "12", "--num-classes", "1", "--results-dir"]
    codes = launch([*argv, str(tmp_path), "--max-bad-images", "0.1"], tmp_path / "output", world_size=2)
    assert codes == [1, 1]
    line = "2 of 12 images cannot be read, more than --max-bad-images 0.1 allows; the last: image"
    assert line in (tmp_path / "output").read_text()
    assert checkpoint.load(tmp_path / NAME / "ckpt.pt")["step"] == 1
    again = [*argv, str(tmp_path), "--max-bad-images", "0.1"]
    assert launch(again, tmp_path / "again") == [1] and line in (tmp_path / "again").read_text()
    for name in ("03.png", "04.png"):  # mended
        (pictures / "class" / name).write_bytes((pictures / "class" / "00.png").read_bytes())
    assert launch([*again, "--max-steps", "3"], tmp_path / "again") == [0]


# ---- other data, another batch size --------------------------------------------------------------------------------


@pytest.fixture
def plain(image_folder, tmp_path):
    """Twelve pictures in a class, and arguments to train on them, four steps an epoch."""
    (tmp_path / "data" / "class").mkdir(parents=True)
    for k, path in enumerate(sorted(image_folder.rglob("*.png"))):
        (tmp_path / "data" / "class" / f"{k:02d}.png").write_bytes(path.read_bytes())
    flags = ["--data-path", tmp_path / "data", "--num-classes", "1", "--global-batch-size", "3", "--grad-accum", "1"]
    return [*map(str, flags), "--log-every", "1", "--sample-every", "0", "--results-dir", str(tmp_path)]


def run(*flags: str) -> None:
    train.main([*RUN, *flags])  # to step 40, if --epochs does not end it


def epochs(tmp_path) -> str:
    return "".join(row["epoch"] for row in metrics(tmp_path / NAME))


def test_another_batch_size_counts_passes_over_the_data_on(plain, tmp_path):
    run(*plain, "--epochs", "3", "--max-steps", "6")
    assert epochs(tmp_path) == "000011"
    run(*plain, "--epochs", "3", "--global-batch-size", "2")  # six images of the second epoch are left
    assert epochs(tmp_path) == "000011" + "111" + "222222"
    log = (tmp_path / NAME / "log.txt").read_text()
    assert "from step 6 to 15" in log and "the data have changed" not in log
    run(*plain, "--epochs", "4", "--global-batch-size", "6")
    assert epochs(tmp_path) == "000011" + "111" + "222222" + "33"
    with pytest.raises(UsageError, match="is at step 17, beyond the 16 of --epochs and --max-steps"):
        run(*plain, "--epochs", "3", "--global-batch-size", "12")


def test_a_larger_batch_is_not_beyond_the_end(plain, tmp_path):
    run(*plain, "--epochs", "2", "--max-steps", "5", "--global-batch-size", "2")
    run(*plain, "--epochs", "2", "--global-batch-size", "12")  # one step is one epoch
    assert epochs(tmp_path) == "00000" + "1"


def test_changed_data_are_named_and_passes_over_them_count_on(plain, tmp_path):
    run(*plain, "--epochs", "2", "--max-steps", "6")
    for k in range(12):
        (tmp_path / "data" / "class" / f"new {k}.png").write_bytes((tmp_path / "data/class/00.png").read_bytes())
    run(*plain, "--epochs", "2")  # half of the second epoch is twelve images now
    assert epochs(tmp_path) == "000011" + "1111"
    log = (tmp_path / NAME / "log.txt").read_text()
    line = f"Warning: the data have changed: {tmp_path / NAME / 'ckpt.pt'} was trained on 12 images, --data-path"
    assert log.count(line) == 1
    run(*plain, "--epochs", "3")
    assert log.count("the data have changed") == 1


def test_a_file_that_has_another_name_is_another_listing(plain, tmp_path):
    run(*plain, "--max-steps", "1")
    (tmp_path / "data/class/00.png").rename(tmp_path / "data/class/99.png")
    run(*plain, "--max-steps", "2")
    assert "Warning: the data have changed" in (tmp_path / NAME / "log.txt").read_text()


def test_a_checkpoint_of_an_older_version_says_nothing_of_the_data(plain, tmp_path):
    """Its steps are counted by its own batch size."""
    run(*plain, "--epochs", "2", "--max-steps", "6")
    path = tmp_path / NAME / "ckpt.pt"
    content = checkpoint.load(path)
    del content["progress"]["images_seen"], content["progress"]["data"]
    checkpoint.save(path, content)
    (tmp_path / "data/class/00.png").rename(tmp_path / "data/class/99.png")
    run(*plain, "--epochs", "2", "--global-batch-size", "2")
    assert epochs(tmp_path) == "000011" + "111"
    assert "the data have changed" not in (tmp_path / NAME / "log.txt").read_text()


def test_a_count_of_images_that_is_none_is_named(plain, tmp_path):
    run(*plain, "--max-steps", "1")
    path = tmp_path / NAME / "ckpt.pt"
    content = checkpoint.load(path)
    counts = ({"images_seen": count} for count in ("7", -1, 2**70))
    for harm in (*counts, {"data": 3}, {"data": {"images": 0}}):
        checkpoint.save(path, content | {"progress": content["progress"] | harm})
        with pytest.raises(DataError, match=r"ckpt\.pt: its progress has images_seen .*, which cannot be continued"):
            run(*plain, "--max-steps", "2")


def test_two_processes_with_other_data_are_refused(pictures, tmp_path):
    """Not mixed-up labels, not a wait without end."""
    (tmp_path / "data").rename(tmp_path / "data-0")
    shutil.copytree(tmp_path / "data-0", tmp_path / "data-1")
    (tmp_path / "data-1" / "class").rename(tmp_path / "data-1" / "klass")
    argv = [*RUN, "--data-path", f"{tmp_path}/data-{{rank}}", "--num-classes", "1", "--global-batch-size", "4"]
    assert launch([*argv, "--results-dir", str(tmp_path)], tmp_path / "output", world_size=2) == [1, 1]
    output = (tmp_path / "output").read_text()
    line = "is not the same for all processes: class 0 is class for the first, klass for process 1; do all nodes"
    assert line in output and "Traceback" not in output and not (tmp_path / NAME).exists()


# ---- mirroring -----------------------------------------------------------------------------------------------------


def test_mirroring_is_switched_off_and_stays_off(plain, tmp_path, monkeypatch):
    """Also where the command that continues does not say so again; a typed one wins."""
    mirrored = []
    original = ImageFolder.__getitem__

    def item(self, key):
        mirrored.append(key[1])
        return original(self, key)

    monkeypatch.setattr(ImageFolder, "__getitem__", item)
    run(*plain, "--max-steps", "3")
    assert any(mirrored)
    begun = str(tmp_path / NAME / "ckpt.pt")
    for exp, flags, flip, line in (
        ("off", ["--no-flip"], False, "Warning: --no-flip instead of the checkpoint's --flip"),
        ("off", [], False, "From the checkpoint: --no-flip"),
        ("on", [], True, "Continuing"),
    ):
        mirrored.clear()
        steps = "4" if "--no-flip" in flags else "8"
        run(*plain, "--ckpt", begun, "--exp", exp, "--max-steps", steps, *flags)
        folder = tmp_path / NAME.replace("exp_tmp", exp)
        assert any(mirrored) == flip and line in (folder / "log.txt").read_text()
        assert checkpoint.load(folder / "ckpt.pt")["args"]["flip"] == flip


def test_a_checkpoint_of_an_older_version_goes_on_mirroring(plain, tmp_path):
    run(*plain, "--max-steps", "1")
    path = tmp_path / NAME / "ckpt.pt"
    content = checkpoint.load(path)
    for flip, line in ((None, None), ("yes", "was trained with --flip 'yes', which is invalid")):
        content["args"].pop("flip", None)
        content["args"] |= {"flip": flip} if flip else {}
        checkpoint.save(path, content)
        if line:
            with pytest.raises(DataError, match=line):
                run(*plain, "--max-steps", "3")
        else:
            run(*plain, "--max-steps", "2")
            assert checkpoint.load(path)["args"]["flip"] is True


# ---- pixels and the Hub --------------------------------------------------------------------------------------------


def test_a_model_of_pixels_never_goes_to_the_hub(plain, tmp_path, monkeypatch):
    """Weights alone do not say --vae none; their channels do."""
    monkeypatch.setattr(autoencoder, "LatentSpace", lambda *args: pytest.fail("fetched"))
    model = ComboStoc_models["ComboStoc-XS/4"](in_channels=3, input_size=8, num_classes=1)
    torch.save(model.state_dict(), tmp_path / "pixels.pt")
    flags = ["--data-path", str(tmp_path / "data"), "--results-dir", str(tmp_path), "--max-steps", "1"]
    flags += ["--image-size", "8", "--num-classes", "1", "--model", "ComboStoc-XS/4", "--global-batch-size", "4"]
    flags += ["--num-workers", "0", "--sample-every", "0", "--ckpt", str(tmp_path / "pixels.pt")]
    train.main(flags)
    assert "From the checkpoint: --vae none" in (tmp_path / NAME / "log.txt").read_text()
    with pytest.raises(UsageError, match=r"--vae ema has 4 channels, the model of checkpoint .*pixels\.pt 3"):
        train.main([*flags, "--vae", "ema", "--exp", "x"])
    for vae in ("ema", "mse"):
        with pytest.raises(UsageError, match=rf"--vae {vae} has 4 channels, the model of checkpoint .*pixels\.pt 3"):
            sample.main(["ODE", "--ckpt", str(tmp_path / "pixels.pt"), "--vae", vae])
