"""The study: runs differ by what they are named for, continue, and are judged and shown as they should."""

import re
import sys
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image

import kinds
import train
from data.sets import Digits
from evaluation.metrics import moments
from experiments import ablation, judge_shapes
from experiments.judge import Judge
from experiments.judge_shapes import make_shape_judge
from experiments.tables import read_rows, write_rows
from experiments.variants import TABLES
from runtime.errors import DataError, UsageError, run_program
from shapes import point_network
from shapes.sets import furniture, save_shapes
from training.arguments import resolve_arguments
from transport import TIMES
from transport.timesteps import times_of_today

PARTS = ("--table", "parts", "--size", "XS", "--data-path", "shapes")


def job(tmp_path, variant="UNSYNC_ALL", *args: str) -> ablation.Job:
    flags = ["--out", str(tmp_path / "study"), "--results-dir", str(tmp_path), "--max-steps", "4", "--every", "2"]
    parsed = ablation.make_parser().parse_args([*flags, "--samples", "20", "--num-sampling-steps", "3", *args])
    return ablation.Job(parsed, variant, 0, [2, 4])


def test_runs_differ_by_what_they_are_named_for(tmp_path):
    """train.py understands all of them; each choice differs from the published one in the arguments it names."""
    parser = train.make_parser()
    published = vars(parser.parse_args(job(tmp_path).train_args()))
    differences = {}
    for table, variants in TABLES.items():
        for variant in variants if not table.startswith("parts") else ():
            args = parser.parse_args(job(tmp_path, variant, "--table", table).train_args())
            difference = {k: v for k, v in vars(args).items() if v != published[k]}
            assert differences.setdefault(variant, difference) == difference  # of one name, whatever the table
            args = resolve_arguments(args, 1, kinds.of_data(args.data_path))
    of_times = {name: d for name, d in differences.items() if "times" in d or "difficulty" in d}
    assert {name: d for name, d in differences.items() if name not in of_times} == {
        "SiT": {"model": "SiT-XS/2", "combostoc_type": None},
        "UNSYNC_NONE": {"combostoc_type": "UNSYNC_NONE"},
        "UNSYNC_VEC": {"combostoc_type": "UNSYNC_VEC"},
        "UNSYNC_PATCH": {"combostoc_type": "UNSYNC_PATCH"},
        "UNSYNC_ALL": {},
        "no compensation": {"compensation": "off"},
        "blend a sample": {"blend": "sample"},
        "no blend": {"blend": "off"},
        "no half-mixing": {"halfmixing": "off"},
        "no half-mixing, blend a sample": {"halfmixing": "off", "blend": "sample"},
        "no half-mixing, no blend": {"halfmixing": "off", "blend": "off"},
    }
    for name, difference in of_times.items():
        assert difference == what_a_name_says(name), name
    assert {d["times"] for d in of_times.values() if "times" in d} == TIMES.keys() - {"combostoc"}
    assert published["data_path"] == "digits" and published["combostoc_type"] == "UNSYNC_ALL"
    assert job(tmp_path).folder != job(tmp_path, "UNSYNC_ALL", "--", "--lr", "1").folder


def test_runs_of_shapes_differ_by_their_type(tmp_path):
    parser, differences = train.make_parser(), {}
    published = vars(parser.parse_args(job(tmp_path, "UNSYNC_ATT_PART", *PARTS).train_args()))
    for variant in TABLES["parts"]:
        args = parser.parse_args(job(tmp_path, variant, *PARTS).train_args())
        differences[variant] = {k: v for k, v in vars(args).items() if v != published[k]}
        args = resolve_arguments(args, 1, kinds.of_data(args.data_path))
        assert args.prediction == "data" and (args.times, args.halfmixing) == ("combostoc", "off")
    types = [f"UNSYNC_{kind}" for kind in ("NONE", "PART", "ATT", "ATT_PART", "VEC", "ALL")]
    assert differences == {kind: {"combostoc_type": kind} if kind != "UNSYNC_ATT_PART" else {} for kind in types}
    assert published["model"] == "Parts-XS" and published["data_path"] == "shapes"
    assert len({job(tmp_path, variant, *PARTS).folder for variant in TABLES["parts"]}) == 6
    for variant, (family, flags) in TABLES["parts-blend"].items():
        kind = variant.removesuffix(", blend")
        assert (family, flags) == (TABLES["parts"][kind][0], f"{TABLES['parts'][kind][1]} --times blend")


WORDS = {
    "no compensation": {"compensation": "off"},
    "difficulty": {"difficulty": 0.01},
    "half-mixed": {"halfmixing": "on"},
}


def what_a_name_says(name: str) -> dict[str, object]:
    """'blend, PATCH, no compensation' and the like, in train.py's arguments."""
    draw, *rest = name.split(", ")
    if draw == "SiT":
        return {"model": "SiT-XS/2", "combostoc_type": None, "times": "logit-normal"}
    says: dict[str, object] = {} if draw == "UNSYNC_ALL" else {"times": times_of_today(draw)}
    for word in rest:
        if word != "ALL":
            says |= WORDS.get(word, {"combostoc_type": f"UNSYNC_{word}"})
    return says


def test_a_run_is_trained_once_and_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "JUDGE", Judge(Digits(8, 1), mirror=False, epochs=3), raising=False)
    one = job(tmp_path, "UNSYNC_VEC", "--size", "XS/4", "--", "--global-batch-size", "16")
    rest = replace(one, steps=one.steps[1:])
    rows = [ablation.carry_out(one), ablation.carry_out(rest)]
    assert [(r.variant, r.seed, r.step, r.samples) for r in rows] == [
        ("UNSYNC_VEC", 0, 2, 20),
        ("UNSYNC_VEC", 0, 4, 20),
    ]
    for row in rows:
        assert row.fd > 0.1 and 0 <= row.accuracy <= 0.6 and row.seconds > 0  # nothing is learned in four steps
    assert rows[0].seconds < rows[1].seconds
    monkeypatch.setattr(ablation, "train", None)  # is not called again
    assert [ablation.carry_out(one), ablation.carry_out(rest)] == rows

    # real digits are at no distance and of their class
    images = ablation.JUDGE.distance(Digits(8, 1).images.contiguous())
    assert images < 1e-6


def test_the_judges_distance_is_in_units_of_the_datas_variance(seeded):
    judge, images = object.__new__(Judge), torch.rand(50, 1, 2, 2) - 0.5
    judge.body = torch.nn.Flatten()
    judge.moments = moments(judge.features(images))
    expected = 4 * 0.25**2 / judge.moments.cov.trace().item()
    assert judge.distance(images + 0.25) == pytest.approx(expected, rel=1e-4)


@pytest.mark.drill
def test_a_run_of_shapes_is_trained_once_and_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(point_network, "STEPS", 20)
    monkeypatch.setattr(judge_shapes, "OFTEN_POINTS", 64)
    monkeypatch.setattr(judge_shapes, "OFTEN_COMPARED", 8)
    shapes = furniture(count=60)
    save_shapes(shapes, tmp_path / "few.npz")
    monkeypatch.setattr(ablation, "JUDGE", make_shape_judge(shapes), raising=False)
    of_data = ["--num-classes", "6", "--global-batch-size", "8", "--num-workers", "0"]
    one = job(
        tmp_path, "UNSYNC_PART", *PARTS, "--data-path", str(tmp_path / "few.npz"), "--samples", "6", "--", *of_data
    )
    rows = [ablation.carry_out(one), ablation.carry_out(replace(one, steps=one.steps[1:]))]
    assert [(r.variant, r.step, r.samples) for r in rows] == [("UNSYNC_PART", 2, 6), ("UNSYNC_PART", 4, 6)]
    for row in rows:
        assert isinstance(row, ablation.ShapeRow)
        assert row.fd > 0.1 and 0 <= row.accuracy <= 1 and row.seconds > 0  # nothing is learned in four steps
        assert row.test_to_samples > 0 and row.samples_to_test > 0 and row.parts >= 1
    write_rows(rows, tmp_path / "study.csv")
    again = read_rows(tmp_path / "study.csv", ablation.ShapeRow)
    assert [row.key for row in again] == [row.key for row in rows]
    for row, other in zip(rows, again, strict=True):
        for name, value in asdict(row).items():
            assert getattr(other, name) == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value)
    monkeypatch.setattr(ablation, "train", None)  # is not called again
    assert ablation.carry_out(one) == rows[0]


def test_a_table_of_shapes_is_shown(tmp_path, monkeypatch, capsys):
    flags = ["--out", str(tmp_path / "study"), *PARTS, "--max-steps", "4", "--every", "2", "--seeds", "0", "1"]
    args, rows = ablation.make_parser().parse_args(flags), []
    for k, variant in enumerate(TABLES["parts"]):
        for seed in range(2):
            for step in (2, 4):
                row = ablation.Job(args, variant, seed, []).row(step)
                row.fd, row.accuracy = round(0.5 - 0.05 * k + 0.01 * seed, 5), round(0.1 * k, 5)
                row.seconds, row.parts = 10.0 * step, 8.0
                row.test_to_samples, row.samples_to_test, row.coverage, row.nearest = 0.01, 0.02, 50.0 + k, 60.0 + k
                rows.append(row)
    write_rows(rows, tmp_path / "study.csv")
    assert read_rows(tmp_path / "study.csv", ablation.ShapeRow) == rows
    monkeypatch.setattr(ablation, "run", None)  # is not called
    ablation.main(flags)
    printed = capsys.readouterr().out
    assert "| valid at the end |" in printed
    assert "| UNSYNC_PART (2) | 455.0 +- 7.1 | 455.0 +- 7.1 | 10.0 +- 0.0 % | 40 +- 0 |" in printed
    assert "UNSYNC_PART is closer to the data than UNSYNC_NONE in this many seeds: 2 of 2 at 2, 2 of 2 at 4" in printed
    cells = "10.00 +- 0.00 | 20.00 +- 0.00 | 51.00 +- 0.00 | 61.00 +- 0.00 | 8.00 +- 0.00"
    assert f"| UNSYNC_PART | {cells} |" in printed
    assert all(f"| {variant} (2) |" in printed for variant in TABLES["parts"])
    with Image.open(tmp_path / "study-parts.png") as figure:
        assert figure.width > 800 and len(figure.convert("RGB").getcolors(10**6)) > 50


def test_seconds_are_the_logs_and_what_was_done_again_counts_once(tmp_path):
    lines = [(100, 10.0), (200, 20.0), (100, 5.0), (200, 20.0), (300, 50.0)]
    text = "".join(f"[...] (step={k:07d}) loss 1.0, {rate:.2f} steps/s, 1 images/s\n" for k, rate in lines)
    (tmp_path / "log.txt").write_text(text)
    assert ablation.training_seconds(tmp_path, 200) == 100 / 5 + 100 / 20
    assert ablation.training_seconds(tmp_path, 300) == 27


def test_a_failed_run_says_why(tmp_path, monkeypatch):
    rate = "sys.argv[len(sys.argv) - sys.argv[::-1].index('--lr')]"  # the last one
    (tmp_path / "train.py").write_text(
        f"import sys; print(file=sys.stderr); sys.exit('train.py: error: --lr ' + {rate})"
    )
    monkeypatch.setattr(ablation, "ROOT", tmp_path)
    with pytest.raises(ablation.DataError, match=r"training UNSYNC_ALL with seed 0 failed: train.py: error: --lr -1"):
        ablation.train(job(tmp_path, "UNSYNC_ALL", "--", "--lr", "-1"))


def complete_table(tmp_path) -> list[str]:
    """A table with a row for everything, so that nothing is left to train."""
    flags = ["--out", str(tmp_path / "study"), "--max-steps", "4", "--every", "2", "--seeds", "0", "1", "2"]
    args = ablation.make_parser().parse_args(flags)
    distance = {"SiT": 0.5, "UNSYNC_NONE": 0.4, "UNSYNC_VEC": 0.3, "UNSYNC_ALL": 0.2}
    rows = []
    for variant, fd in distance.items():
        for seed in range(3):
            for step in (2, 4):
                row = ablation.Job(args, variant, seed, []).row(step)
                row.fd, row.accuracy, row.seconds = fd + 0.01 * seed, 1 - fd, 10.0 * step
                if (variant, seed, step) == ("UNSYNC_ALL", 1, 4):
                    row.fd = 0.9
                rows.append(row)
    rows.append(ablation.Job(args, "SiT", 0, []).row(6))  # a step that the others do not have is not shown
    write_rows(rows, tmp_path / "study.csv")
    return flags


def test_what_is_there_is_not_computed_again_but_shown(tmp_path, monkeypatch, capsys):
    flags = complete_table(tmp_path)
    monkeypatch.setattr(ablation, "run", None)  # is not called
    ablation.main(flags)
    printed = capsys.readouterr().out
    assert "| SiT (3) | 510.0 +- 10.0 | 510.0 +- 10.0 | 50.0 +- 0.0 % | 40 +- 0 |" in printed
    assert "UNSYNC_ALL is closer to the data than UNSYNC_NONE in this many seeds: 3 of 3 at 2, 2 of 3 at 4" in printed
    assert "1000 FD at 4 | in class" in printed
    assert "UNSYNC_PATCH" not in printed  # on one channel it is UNSYNC_ALL
    with Image.open(tmp_path / "study-types.png") as figure:
        assert figure.width > 800 and len(figure.convert("RGB").getcolors(10**6)) > 50


def test_a_table_comes_back_as_it_was(tmp_path):
    complete_table(tmp_path)
    rows = read_rows(tmp_path / "study.csv", ablation.Row)
    assert len(rows) == 25 and rows[0].variant == "SiT" and rows[0].seed == 0 and rows[0].fd == 0.5
    write_rows(rows, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "study.csv").read_bytes()
    assert read_rows(tmp_path / "absent.csv", ablation.Row) == []


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("--out {f}/absent/x", 1, "absent does not exist"),
        ("--out {f}/x --every 300", 2, "--max-steps 1000 is not a multiple of --every 300"),
        ("--out {f}/other", 1, "other.csv is not a table of this program"),
        ("--out {f}/x --table all", 2, "'all'.*types.*choices"),
        ("--out {f}/x --data-path {f}/none", 1, "none does not exist"),
        ("--out {f}/x --table parts", 2, "--size XS/2: there is no Parts-XS/2; the models are .*Parts-"),
        ("--out {f}/x --table parts --size XS", 2, "--table parts is of models of shapes, not for --data-path digits"),
        ("--out {f}/x --data-path shapes", 2, "--table types is of models of images, not for --data-path shapes"),
    ],
)
def test_mistakes_end_in_one_line(arguments, code, line, tmp_path, monkeypatch, capsys):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(sys, "argv", ["ablation.py"])
    with pytest.raises(SystemExit) as exit_:
        run_program(lambda: ablation.main(arguments.format(f=tmp_path).split()))
    message = capsys.readouterr().err
    assert exit_.value.code == code and message.count("\n") == 1
    assert re.search(line, message), message
    assert [p.name for p in tmp_path.iterdir()] == ["other.csv"]


def test_a_learning_rate_is_chosen_on_another_seed(tmp_path, monkeypatch, capsys):
    """Each variant has the rate that ends closest on --tuning-seed; what is shown is of --seeds alone."""
    made = []

    def carry_out(args, jobs):
        for job in jobs:
            for step in job.steps:
                made.append((job.variant, job.seed, job.lr, step))
                row = job.row(step)
                best = {"SiT": 4e-3, "UNSYNC_ALL": 2e-3}.get(job.variant, 8e-3)
                row.fd = 1 + abs(row.lr - best) + job.seed
                yield row

    monkeypatch.setattr(ablation, "run", carry_out)
    flags = ["--out", str(tmp_path / "study"), "--table", "methods", "--max-steps", "4", "--every", "2"]
    ablation.main([*flags, "--seeds", "0", "1", "--lrs", "2e-3", "4e-3", "8e-3"])
    assert all((seed, step) == (9, 4) for _, seed, _, step in made[: 5 * 3])  # tuned first, and judged at the end
    assert {lr for variant, seed, lr, _ in made if variant == "SiT" and seed != 9} == {4e-3}
    assert {lr for variant, seed, lr, _ in made if variant == "UNSYNC_ALL" and seed != 9} == {2e-3}
    assert {(seed, step) for _, seed, _, step in made[5 * 3 :]} == {(0, 2), (0, 4), (1, 2), (1, 4)}
    printed = capsys.readouterr().out
    assert "| 1000 FD / in class at 4 | lr 0.002 | lr 0.004 | lr 0.008 |" in printed
    assert "| SiT (2) | 1500.0 +- 707.1 " in printed  # seeds 0 and 1
    rows = read_rows(tmp_path / "study.csv", ablation.Row)
    assert len(rows) == len(made) and {r.ema_decay for r in rows} == {0.99}
    made.clear()
    ablation.main([*flags, "--seeds", "0", "1", "--lrs", "2e-3", "4e-3", "8e-3"])
    assert made == []

    with pytest.raises(UsageError, match="--tuning-seed 9 is one of --seeds"):
        ablation.main([*flags, "--seeds", "9", "--lrs", "2e-3"])


def test_a_rate_at_which_a_reported_run_diverges_is_out_for_all_its_seeds(tmp_path, monkeypatch, capsys):
    made = []

    def carry_out(args, jobs):
        for job in jobs:
            for step in job.steps:
                row = job.row(step)
                row.fd = 1 / step / row.lr
                if job.variant == "SiT" and row.lr == 8e-3 and job.seed == 1 and step > 2:
                    row.fd = 1000.0
                made.append((job.variant, job.seed, row.lr, step))
                yield row

    monkeypatch.setattr(ablation, "run", carry_out)
    flags = ["--out", str(tmp_path / "study"), "--table", "methods", "--max-steps", "4", "--every", "2"]
    ablation.main([*flags, "--seeds", "0", "1", "--lrs", "4e-3", "8e-3"])
    printed = capsys.readouterr().out
    assert made[-4:] == [("SiT", seed, 4e-3, step) for seed in (0, 1) for step in (2, 4)]
    assert {lr for variant, seed, lr, _ in made if variant != "SiT" and seed != 9} == {8e-3}
    assert "SiT diverged with seed 1 at lr 0.008, which is out for all its seeds" in printed
    assert "| SiT (2) | 125000.0 +- 0.0 | 62500.0 +- 0.0 |" in printed  # of lr 4e-3

    with pytest.raises(DataError, match="diverges at every learning rate"):
        ablation.main([*flags, "--seeds", "0", "1", "--lrs", "8e-3"])


def test_a_learning_rate_that_ends_with_the_run_makes_its_length_tell(tmp_path):
    decayed = ("--", "--lr-decay", "2")
    assert job(tmp_path).folder == job(tmp_path, "UNSYNC_ALL", "--max-steps", "8").folder
    assert (
        job(tmp_path, "UNSYNC_ALL", *decayed).folder != job(tmp_path, "UNSYNC_ALL", "--max-steps", "8", *decayed).folder
    )
