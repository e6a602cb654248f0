"""The benchmark measures what it says; how fast anything is, no test decides."""

import json

import pytest
import torch
from PIL import Image

import extract_latents
from benchmarks import measure, predecessor, throughput
from runtime.errors import run_program
from tests.test_models import random_model
from train_utils import ModelConfig

CPU = torch.device("cpu")


def config(name: str) -> ModelConfig:
    return ModelConfig(name, 32, 4, 1000, learn_sigma=True)


def test_model_flops_are_the_published_ones():
    """118.6 G multiply-adds for XL/2 (DiT, table 4); a vector a token adds 6 D^2 for each token and block."""
    sit = measure.model_flops(config("SiT-XL/2"), [(2,)], training=False) / 2
    assert sit / 2 == pytest.approx(118.6e9, rel=1e-3)
    sync, full = (
        measure.model_flops(config("ComboStoc-XL/2"), [shape], training=False) for shape in [(1,), (1, 4, 32, 32)]
    )
    assert sync == pytest.approx(sit, rel=1e-3)
    assert full - sync == pytest.approx(2 * 28 * 6 * 1152**2 * 256, rel=0.01)
    half = measure.model_flops(config("ComboStoc-XL/2"), [(1, 4, 32, 32), (1,)], training=True)
    assert half == pytest.approx(3 * (sync + full), rel=0.01)


def test_the_predecessors_settings_change_no_number():
    model, plain = random_model().eval(), random_model().eval()
    predecessor.condition_every_token(model)
    x, y = torch.randn(3, 4, 8, 8), torch.tensor([1, 2, 3])
    for t in (torch.rand(3), torch.rand(3, 4, 1, 1), torch.rand(3, 1, 8, 8)):
        assert model.embed_timesteps(t, x).shape == (3, 16, 48)
        torch.testing.assert_close(model(x, t, y), plain(x, t, y))


def test_cases_take_turns():
    order: list[str] = []
    cases = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = measure.interleaved(cases, rounds=3, repeats=2, device=CPU)
    assert "".join(order) == "abc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert {len(s) for s in seconds.values()} == {3} and measure.ratio([4.0, 9.0, 2.0], [2.0, 3.0, 2.0]) == 2


def test_peak_memory_is_what_a_run_needs():
    held = []
    peak = measure.peak_memory(lambda: held.append(torch.ones(64 * 2**20, dtype=torch.uint8)) or held.clear(), 0, CPU)
    assert 60 * 2**20 < peak < 100 * 2**20


def test_training_beside_the_predecessor_sit_and_cached_latents(tmp_path, image_folder, tiny_vae, capsys):
    latents = tmp_path / "latents"
    flags = ["--data-path", image_folder, "--out", latents, "--vae", tiny_vae, "--image-size", "16"]
    extract_latents.main([*map(str, flags), "--num-workers", "0"])
    flags = "train --model ComboStoc-XS/4 --batch-size 4 --image-size 64 --precision fp32 --compare --rounds 1".split()
    flags += ["--data-path", str(latents), "--num-workers", "0", "--json", str(tmp_path / "a.json")]
    throughput.main([*flags, "--combostoc-type", "UNSYNC_ALL", "UNSYNC_VEC"])
    report = json.loads((tmp_path / "a.json").read_text())
    assert len(report["results"]) == 3 * 2 + 1  # SiT once
    assert {"predecessor / ours, UNSYNC_VEC", "ours / SiT, UNSYNC_ALL", "cached / ours, UNSYNC_ALL"} <= set(
        report["ratios"]
    )
    for row in report["results"]:
        assert row["images_per_s"] > 0 and 0 < row["share_of_peak"] < 1
        assert row["peak_memory_gib"] is None  # on a CPU, beside others, it would not be its own
    by_name = {row["name"]: row for row in report["results"]}
    ours, sit = by_name["ComboStoc-XS/4 UNSYNC_ALL, fp32"], by_name["SiT-XS/4, fp32"]
    assert ours["model_gflops_per_image"] > sit["model_gflops_per_image"]
    assert f"| {ours['name']}, batch 4 |" in capsys.readouterr().out


@pytest.mark.drill
def test_random_latents_stand_in_for_a_folder(monkeypatch, capsys):
    monkeypatch.setattr(extract_latents, "SHARD_SIZE", 8)
    flags = "train --model ComboStoc-XS/4 --batch-size 4 --image-size 64 --precision fp32 --rounds 1".split()
    throughput.main([*flags, "--data-path", "random", "--num-workers", "1"])
    assert "cached / ours, UNSYNC_ALL" in capsys.readouterr().out


@pytest.mark.drill
def test_one_case_alone_tells_its_memory(tmp_path):
    """At least weights, gradients, moments and average: 20 bytes a parameter."""
    path = tmp_path / "one.json"
    flags = "train --model ComboStoc-XS/2 --batch-size 2 --image-size 64 --precision fp32 --rounds 1".split()
    throughput.main([*flags, "--json", str(path)])
    (row,) = json.loads(path.read_text())["results"]
    parameters = sum(p.numel() for p in throughput.meta_model(row).parameters())
    assert 20 * parameters < row["peak_memory_gib"] * 2**30 < 20 * parameters + 2**29


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("train --image-size 100", "--image-size 100 is not a multiple of 16"),
        ("sample --model ComboStoc-XS/3", "unknown model"),
        ("train --model Parts-XS", "Parts-XS is a model of shapes"),
        ("train --combostoc-type UNSYNC_PART", "invalid choice: 'UNSYNC_PART'"),
        ("train --data-path absent --model SiT-XS/4 --rounds 1 --num-workers 0", "absent does not exist"),
    ],
)
def test_mistakes(flags, line, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["throughput.py"])
    with pytest.raises(SystemExit) as exit_:
        run_program(lambda: throughput.main(flags.split()))
    assert exit_.value.code in (1, 2) and line in capsys.readouterr().err


def test_sampling_and_cost_against_batch_size(tmp_path):
    small = "--model ComboStoc-XS/4 --image-size 64 --precision fp32 --rounds 1".split()
    flags = ["sample", *small, "--batch-size", "2", "--num-sampling-steps", "3", "--cfg-scale", "2", "--compare"]
    throughput.main([*flags, "--json", str(tmp_path / "s.json")])
    report = json.loads((tmp_path / "s.json").read_text())
    assert set(report["ratios"]) == {"predecessor / ours", "ours / SiT", "predecessor / SiT"}
    row = report["results"][0]
    assert row["seconds_per_evaluation"] == pytest.approx(row["seconds"][0] / 3, rel=0.01)
    plot = tmp_path / "cost.png"
    throughput.main(
        ["batches", *small, "--max-batch-size", "16", "--plot", str(plot), "--json", str(tmp_path / "b.json")]
    )
    assert json.loads((tmp_path / "b.json").read_text())["batch_sizes"] == [8, 16]
    with Image.open(plot) as picture:
        assert picture.width > 500
