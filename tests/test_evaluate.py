"""evaluate.py on the digits, seen by few features or EfficientNet-Lite0: numbers, files of statistics, mistakes."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from evaluation import features, metrics, report
from evaluation.features import Extractor, Features
from evaluation.image_sets import open_images
from runtime.errors import DataError, run_program
from tests.conftest import see_little
from tests.forked import run_forked

OFFLINE = ["--features", "efficientnet-lite0"]
N = 40


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Sets of digits: the first, others of the same kind, and the first with noise, as .npz."""
    root = tmp_path_factory.mktemp("sets")
    ((_, digits),) = open_images("digits").batches(1797)
    digits = digits.permute(0, 2, 3, 1).numpy()
    rng = np.random.default_rng(0)
    np.savez(root / "some.npz", digits[:N])
    np.savez(root / "others.npz", digits[N : 2 * N])
    for level in (16, 96):
        noisy = digits[:N] + rng.normal(0, level, digits[:N].shape)
        np.savez(root / f"noise{level}.npz", noisy.clip(0, 255).astype(np.uint8))
    return root


def numbers(capsys, *args: str) -> dict[str, float]:
    evaluate.main([*args, *OFFLINE])
    printed = capsys.readouterr().out.splitlines()
    return {name: float(value) for name, value, *_ in map(str.split, printed) if value.lstrip("-")[0].isdigit()}


def test_noise_grows_and_a_set_is_at_no_distance_from_itself(files, capsys, tmp_path, few_features):
    reference = str(tmp_path / "some-stats.npz")
    evaluate.main([str(files / "some.npz"), "--save-stats", reference, *OFFLINE])
    assert f"Statistics of {files / 'some.npz'} in {reference}" in capsys.readouterr().out
    found = [numbers(capsys, str(files / f"{k}.npz"), reference) for k in ("some", "noise16", "noise96")]
    assert set(found[0]) == {f"{k}-efficientnet-lite0" for k in ("FD", "IS", "KD", "precision", "recall")}
    distances = [f["FD-efficientnet-lite0"] for f in found]
    assert abs(distances[0]) < 1e-6 < distances[1] and distances == sorted(distances)
    assert found[0]["precision-efficientnet-lite0"] == found[0]["recall-efficientnet-lite0"] == 1
    kernels = [f["KD-efficientnet-lite0"] for f in found]
    assert kernels == sorted(kernels)


def test_statistics_say_what_the_images_do_in_any_batch_size(files, capsys, tmp_path, few_features):
    some, others, saved = str(files / "some.npz"), str(files / "others.npz"), str(tmp_path / "others-stats.npz")
    evaluate.main([others, "--save-stats", saved, "--batch-size", "7", *OFFLINE])
    capsys.readouterr()
    direct = numbers(capsys, some, others, "--out", str(tmp_path / "numbers.json"))
    through = numbers(capsys, some, saved, "--batch-size", "9")
    assert through == pytest.approx(direct, rel=1e-4)
    record = json.loads((tmp_path / "numbers.json").read_text())
    assert record["sample_count"] == record["reference_count"] == N
    assert record["FD-efficientnet-lite0"] == pytest.approx(direct["FD-efficientnet-lite0"], rel=1e-5)
    with np.load(saved) as arrays:
        assert arrays["mu"].dtype == arrays["sigma"].dtype == np.float64
        np.testing.assert_allclose(arrays["sigma"], np.cov(arrays["features"].astype(float), rowvar=False), atol=1e-9)


def test_few_images_are_warned_of(files, capsys):
    """Few for the network itself, by which noise is far away."""
    evaluate.main([str(files / "some.npz"), str(files / "noise96.npz"), *OFFLINE])
    said = capsys.readouterr()
    assert float(said.out.split()[1]) > 0.5 and said.out.startswith("FD-efficientnet-lite0 ")
    warnings = [line for line in said.err.splitlines() if line.startswith("Warning")]
    assert len(warnings) == 2 and all(
        "40 images (" in line and ") are not more than the 1,280 features" in line for line in warnings
    )


def warned(capsys, *args: str) -> list[str]:
    evaluate.main(list(args))
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("Warning") and "are not more than" not in line]


def test_sets_of_different_resolution_are_compared_with_a_warning(files, tmp_path, capsys, means):
    np.savez(tmp_path / "large.npz", np.zeros((4, 16, 12, 3), np.uint8))
    (tmp_path / "folder").mkdir()
    for k in range(3):
        Image.new("RGB", (20, 10)).save(tmp_path / "folder" / f"{k}.png")
    some, large, folder = str(files / "some.npz"), str(tmp_path / "large.npz"), str(tmp_path / "folder")
    (line,) = warned(capsys, some, large)
    assert "samples are images of 8 x 8 pixels, the reference's are of 12 x 16" in line
    (line,) = warned(capsys, folder, "digits")
    assert "20 x 10" in line and "8 x 8" in line
    assert warned(capsys, some, folder, "--image-size", "8") == warned(capsys, some, "digits") == []


def test_a_reference_in_the_place_of_the_samples_is_warned_of(files, tmp_path, capsys, means):
    with np.load(files / "some.npz") as some:
        write_adm(tmp_path / "adm.npz", some["arr_0"], shown=some["arr_0"])
    (line,) = warned(capsys, str(tmp_path / "adm.npz"), str(files / "some.npz"))
    assert "adm.npz, which stands first, holds both images and their statistics, as a reference does" in line
    assert warned(capsys, str(files / "some.npz"), str(tmp_path / "adm.npz")) == []
    assert warned(capsys, str(tmp_path / "adm.npz"), "--save-stats", str(tmp_path / "s.npz")) == []


def test_two_processes_see_what_one_does(files, tmp_path):
    """Each half of the batches: the same numbers, and the same file of statistics up to rounding."""
    for processes in (1, 2):
        out = ["--out", tmp_path / f"{processes}.json", "--save-stats", tmp_path / f"{processes}.npz"]
        args = [files / "some.npz", files / "others.npz", *OFFLINE, "--batch-size", "12", *out]
        run_forked("evaluate.py", *args, processes=processes, cwd=tmp_path, before=see_little)
    one, two = (json.loads((tmp_path / f"{k}.json").read_text()) for k in (1, 2))
    assert one.keys() == two.keys() and one["sample_count"] == N
    assert all(two[k] == pytest.approx(v, rel=1e-5) for k, v in one.items() if isinstance(v, float))
    with np.load(tmp_path / "1.npz") as a, np.load(tmp_path / "2.npz") as b:
        np.testing.assert_allclose(a["features"], b["features"], rtol=1e-4, atol=1e-5)


# ---- the FID network's own files, with a network that is no network ------------------------------------------------


@pytest.fixture
def means(monkeypatch):
    """In inception's place: features that are the means over parts of a picture."""

    def extract(images: torch.Tensor) -> Features:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)  # (N, 12)
        return Features(pooled, pooled[:, :5] ** 2, pooled / 50)

    monkeypatch.setattr(report, "load_extractor", lambda name, *_: Extractor(name, extract))
    monkeypatch.setitem(features.DIMENSIONS, "inception", 12)


def write_adm(path, digits: np.ndarray, shown: np.ndarray, **changes) -> None:
    """A reference batch as ADM's: moments of one set of images, and some images."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(digits).permute(0, 3, 1, 2).float(), 2).flatten(1)
    arrays = {}
    for suffix, seen in (("", pooled), ("_s", pooled[:, :5] ** 2)):
        found = metrics.moments(seen)
        arrays |= {f"mu{suffix}": found.mean.numpy(), f"sigma{suffix}": found.cov.numpy()}
    np.savez(path, arr_0=shown, **(arrays | changes))


def test_adms_reference_batch(files, tmp_path, means, capsys):
    """Its moments give FID and sFID, its images precision, recall and KID."""
    with np.load(files / "some.npz") as some, np.load(files / "others.npz") as others:
        some, others = some["arr_0"], others["arr_0"]
    write_adm(tmp_path / "adm.npz", others, shown=some)
    evaluate.main([str(files / "some.npz"), str(tmp_path / "adm.npz"), "--out", str(tmp_path / "adm.json")])
    evaluate.main([str(files / "some.npz"), str(files / "others.npz"), "--out", str(tmp_path / "whole.json")])
    found, whole = (json.loads((tmp_path / f"{k}.json").read_text()) for k in ("adm", "whole"))
    for name in ("FID", "sFID", "IS"):
        assert found[name] == pytest.approx(whole[name], rel=1e-9)
    assert found["precision"] == found["recall"] == 1 and found["KID"] < whole["KID"]
    assert "sFID" in capsys.readouterr().out


def test_moments_alone(files, tmp_path, means, capsys):
    """What other programs save: mu and sigma. FID and the inception score are what can be said."""
    with np.load(files / "others.npz") as others:
        write_adm(tmp_path / "adm.npz", others["arr_0"], shown=others["arr_0"])
    with np.load(tmp_path / "adm.npz") as adm:
        np.savez(tmp_path / "moments.npz", mu=adm["mu"], sigma=adm["sigma"])
    evaluate.main([str(files / "some.npz"), str(tmp_path / "moments.npz"), "--out", str(tmp_path / "n.json")])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["FID", "IS"]


@pytest.mark.parametrize("extra", [{}, {"extractor": "inception", "count": 40}])
def test_two_files_of_statistics_need_no_network(extra, tmp_path, monkeypatch, capsys):
    """Nor its weights, which the machine may not be able to fetch."""

    def fail(*_):
        raise DataError("weights of inception cannot be fetched")

    monkeypatch.setattr(report, "load_extractor", fail)
    monkeypatch.setitem(features.DIMENSIONS, "inception", 12)
    for name, mean in (("a", 0.0), ("b", 0.5)):
        np.savez(tmp_path / f"{name}.npz", mu=np.full(12, mean), sigma=np.eye(12, dtype=np.float32), **extra)
    evaluate.main([str(tmp_path / "a.npz"), str(tmp_path / "b.npz")])
    assert capsys.readouterr().out.split() == ["FID", "3"]
    np.savez(tmp_path / "images.npz", np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="cannot be fetched"):
        evaluate.main([str(tmp_path / "images.npz"), str(tmp_path / "b.npz")])


def test_statistics_of_many_images_keep_features_of_some(files, tmp_path, means, monkeypatch, capsys):
    """Evenly spaced ones, for folders are in the order of their classes; the moments are those of all."""
    monkeypatch.setattr("evaluation.statistics.MAX_FEATURES", 5)
    evaluate.main([str(files / "others.npz"), "--save-stats", str(tmp_path / "stats.npz")])
    with np.load(files / "others.npz") as others, np.load(tmp_path / "stats.npz") as saved:
        images = torch.from_numpy(others["arr_0"]).permute(0, 3, 1, 2).float()
        pooled = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        np.testing.assert_allclose(saved["mu"], pooled.double().mean(0), rtol=1e-12)
        np.testing.assert_allclose(saved["features"], pooled[[0, 10, 20, 29, 39]], rtol=1e-6)
        assert saved["count"] == N
    evaluate.main([str(files / "some.npz"), str(tmp_path / "stats.npz")])
    assert "KID, precision and recall are with 5 of 40 images (reference)" in capsys.readouterr().err


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad(files):
    with np.load(files / "some.npz") as some:
        pixels = some["arr_0"]
    np.savez(files / "one.npz", pixels[:1])
    np.savez(files / "none.npz", pixels[:0])
    np.savez(files / "fortran.npz", np.asfortranarray(pixels))
    np.savez(files / "other.npz", images=pixels)
    np.savez(files / "float.npz", pixels / 255)
    np.savez(files / "thin.npz", mu=np.zeros(7), sigma=np.eye(7), extractor="efficientnet-lite0")
    np.savez(files / "skew.npz", mu=np.zeros(1280), sigma=np.eye(7), extractor="efficientnet-lite0")
    np.savez(files / "nan.npz", mu=np.full(7, np.nan), sigma=np.eye(7), extractor="efficientnet-lite0")
    np.savez(files / "zeros.npz", mu=np.zeros(1280), sigma=np.eye(1280), extractor="efficientnet-lite0")
    np.savez(files / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    for name in ("ckpt.pt", "ckpt.npz"):
        torch.save({"w": torch.ones(1)}, files / name)
    (files / "page.npz").write_text("<html>")
    np.savez(files / "many.npz", **{f"a{k}": np.ones(1) for k in range(10)})
    (files / "folder").mkdir()
    (files / "folder" / "a.png").write_bytes(b"no picture")
    (files / "folder" / "b.png").write_bytes(b"no picture")
    return files


CASES = [
    ("{f}/some.npz", 2, "nothing to do: give a REFERENCE"),
    ("{f}/absent.npz {f}/some.npz", 1, "absent.npz does not exist"),
    ("{f}/other.npz {f}/some.npz", 1, "other.npz has no arr_0; it holds images"),
    (
        "{f}/some.npz {f}/others.npz --image-size 16",
        2,
        "--image-size 16 crops pictures of folders; {f}/some.npz holds images of 8 x 8 pixels",
    ),
    ("{f}/zeros.npz {f}/zeros.npz --image-size 8", 2, "--image-size 8 crops images, and {f}/zeros.npz holds none"),
    ("{f}/ckpt.pt {f}/some.npz", 1, "ckpt.pt is no .npz file but a PyTorch checkpoint"),
    ("{f}/ckpt.npz {f}/some.npz", 1, "ckpt.npz is no .npz file but a PyTorch checkpoint"),
    ("{f}/page.npz {f}/some.npz", 1, "page.npz is no .npz file but a web page"),
    ("{f}/many.npz {f}/some.npz", 1, "many.npz has no arr_0; it holds a0, a1, a2, a3, a4, a5, a6, a7, ..."),
    ("{f}/some.npz {f}/float.npz", 1, "arr_0 is float64 of shape (40, 8, 8, 3); uint8 of (N, H, W, 3) is needed"),
    ("{f}/none.npz {f}/some.npz", 1, "none.npz holds no images: arr_0 is of shape (0, 8, 8, 3)"),
    ("{f}/fortran.npz {f}/some.npz", 1, "arr_0 is in Fortran order; save numpy.ascontiguousarray of it"),
    ("{f}/some.npz {f}/one.npz", 1, "one.npz holds 1 image; a distribution takes two or more"),
    ("{f}/some.npz {f}/thin.npz", 1, "thin.npz holds statistics of 7 features; efficientnet-lite0 has 1280"),
    ("{f}/some.npz {f}/skew.npz", 1, "mu has shape (1280,), sigma (7, 7)"),
    ("{f}/some.npz {f}/nan.npz", 1, "mu or sigma is not finite"),
    ("{f}/some.npz {f}/inception.npz", 1, "statistics of inception, not of efficientnet-lite0"),
    ("{f}/some.npz {f}/folder", 1, "a.png cannot be read"),
    ("{f}/some.npz {f}/others.npz --weights w.pth", 2, "w.pth are for the features inception"),
    ("{f}/some.npz {f}/others.npz --out {f}/absent/x.json", 1, "absent does not exist"),
    ("{f}/some.npz --save-stats x", 2, "--save-stats x must end in .npz"),
    ("{f}/some.npz --save-stats x.npz --out y.json", 2, "--out y.json needs a REFERENCE"),
    ("{f}/some.npz {f}/others.npz --batch-size 0", 2, "0 is not a positive whole number"),
]


@pytest.mark.parametrize(("arguments", "code", "line"), CASES)
def test_one_line_and_nothing_left(arguments, code, line, bad, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    with pytest.raises(SystemExit) as exit_:
        run_program(lambda: evaluate.main([*OFFLINE, *arguments.format(f=bad).split()]))
    message = capsys.readouterr().err
    assert exit_.value.code == code, message
    assert message.count("\n") == 1 and message.startswith("evaluate.py"), message
    assert line.format(f=bad) in message
    assert list(tmp_path.iterdir()) == []


def test_dinov2s_numbers_have_its_name(files, capsys, tmp_path, monkeypatch):
    """Of pictures and of saved statistics; a network without classes gives no inception score."""
    from timm import create_model

    for name, value in {"embed_dim": 12, "depth": 1, "num_heads": 2}.items():
        monkeypatch.setitem(features.DINOV2, name, value)
    monkeypatch.setitem(features.DIMENSIONS, "dinov2", 12)
    torch.save(create_model(**features.DINOV2).state_dict(), tmp_path / "w.pth")
    flags = ["--features", "dinov2", "--weights", str(tmp_path / "w.pth")]
    some, others, saved = str(files / "some.npz"), str(files / "others.npz"), str(tmp_path / "s.npz")
    evaluate.main([others, "--save-stats", saved, *flags])
    printed = []
    for reference in (others, saved):
        capsys.readouterr()
        evaluate.main([some, reference, *flags])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert [line.split()[0] for line in printed[0].splitlines()] == [
        *("FD-dinov2", "KD-dinov2", "precision-dinov2", "recall-dinov2")
    ]
    with pytest.raises(DataError, match=r"s\.npz holds statistics of dinov2, not of efficientnet-lite0"):
        evaluate.main([some, saved, *OFFLINE])
