"""The effect of ComboStoc's choices on the speed of training: the paper's ablation (arXiv 2405.13729, Figure 6).

    python experiments/ablation.py --out results/study                               # SiT and the types: `make study`
    python experiments/ablation.py --out results/study --table choices --every 500   # `make study-choices`
    python experiments/ablation.py --out results/study --table times --every 500     # ways of drawing times
    python experiments/ablation.py --out results/imagenet --data-path FOLDER --size S/2 --samples 10000 \\
        --num-sampling-steps 250 --max-steps 400000 --every 50000 --nproc-per-node 8 -- --vae ema --num-workers 8

Every run is one of train.py, with the same steps, batch and data order for a seed; arguments after -- go to it. Its
checkpoints are sampled by the Euler SDE without guidance, from the same noise and labels, each class equally often, and
a small classifier of the data set judges the samples: the share in the class asked for, and the Frechet distance of
its features to all images', in units of their total variance. OUT.csv gets a row for each checkpoint, OUT-<table>.png
the figure, standard output the table. With --lrs every variant has a learning rate of its own, chosen on another seed;
one at which a reported run diverges is out, and the next best is taken for all seeds.
Runs that were interrupted continue, and rows that are there are not computed again.
"""

import argparse
import hashlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import kinds
import train as program
from data.caches import is_latents
from data.sets import DIGITS, ImageDataset, load_dataset
from experiments.judge import Judge, judge_samples, unguided
from experiments.judge_shapes import ShapeJudge, judge_shapes, open_shape_judge
from experiments.measurements import (
    CURVES,
    Row,
    ShapeRow,
    comparison_lines,
    draw_curves,
    draw_dots,
    shape_lines,
    table_lines,
    tuning_lines,
)
from experiments.tables import read_rows, write_rows
from experiments.variants import TABLES
from runtime import distributed, precision, progress
from runtime.command_line import Parser, positive_float, positive_int, with_values
from runtime.errors import DataError, UsageError, run_program

ROOT = Path(__file__).resolve().parent.parent

DIGITS_ARGS = (
    "--vae none --image-size 8 --num-classes 10 --num-workers 0 --global-batch-size 128 --lr 1e-3 --ema-decay 0.99"
)


# ---- one run -------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """A variant of one seed: the run to train, and the steps whose checkpoints are measured."""

    args: argparse.Namespace
    variant: str
    seed: int
    steps: list[int]
    lr: float | None = None  # learning rate; None is that of the arguments

    def train_args(self) -> list[str]:
        """The arguments of train.py that training depends on."""
        args = self.args
        family, flags = TABLES[args.table][self.variant]
        own = [] if self.lr is None else ["--lr", f"{self.lr:g}"]
        own += ["--model", f"{family}-{args.size}", *flags.split(), "--global-seed", str(self.seed)]
        return [*common_args(args), *own]

    @property
    def exp(self) -> str:
        """The name of the experiment, --exp."""
        variant = self.variant.replace(", ", "-").replace(" ", "-")
        rate = "" if self.lr is None else f"-{self.lr:g}"
        return f"study-{variant}-{self.seed}{rate}-{training_digest(self.args)}"

    @property
    def folder(self) -> Path:
        """The folder of the experiment."""
        family, _ = TABLES[self.args.table][self.variant]
        return self.args.results_dir / f"{family}-{self.args.size}-{self.exp}".replace("/", "-")

    def checkpoint(self, step: int) -> Path:
        """The kept checkpoint of a step."""
        return self.folder / "checkpoints" / f"{step:07d}.safetensors"

    def row(self, step: int) -> Row:
        """The row of a step, before it is measured."""
        args, given = self.args, program.make_parser().parse_args(self.train_args())
        kind = kind_of_row(args)
        about = (training_digest(args), args.samples, args.num_sampling_steps, given.lr, given.ema_decay)
        return kind(self.variant, self.seed, step, *about)


def kind_of_row(args: argparse.Namespace) -> type[Row]:
    """The type of row for the kind of data."""
    return ShapeRow if kinds.of_data(args.data_path) is kinds.SHAPES else Row


def common_args(args: argparse.Namespace) -> list[str]:
    """Arguments of train.py that all variants have."""
    defaults = DIGITS_ARGS.split() if args.data_path == DIGITS else []
    return ["--data-path", args.data_path, *defaults, *args.train_args]


def training_digest(args: argparse.Namespace) -> str:
    """A digest of data, size and arguments, and of the length where the learning rate decays: it tells runs apart."""
    common = common_args(args)
    length = [str(args.max_steps)] if "--lr-decay" in common else []
    return hashlib.sha256(" ".join([args.size, *common, *length]).encode()).hexdigest()[:8]


def train(job: Job) -> None:
    """Train, or continue training, by train.py.

    Raises:
        DataError: it failed, or has kept no checkpoint of a step that is to be measured.
    """
    args = job.args
    launcher = [sys.executable]
    if args.nproc_per_node > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.nproc_per_node}"]
    every = str(args.every)
    command = [
        *(*launcher, str(ROOT / "train.py"), *job.train_args()),
        *("--results-dir", str(args.results_dir), "--exp", job.exp, "--max-steps", str(args.max_steps)),
        *("--ckpt-every", every, "--ckpt-format", "safetensors", "--reckpt-every", every),
        *("--log-every", str(max(1, args.every // 5)), "--sample-every", "0"),
    ]
    name = f"{job.variant} with seed {job.seed}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, output = process.communicate()
        except BaseException:  # a signal: training saves and ends by it, too
            process.terminate()
            raise
    if process.returncode:
        lines = output.strip().splitlines() or ["no message"]
        raise DataError(f"training {name} failed: {next((x for x in lines if ': error: ' in x), lines[-1])}")
    for step in job.steps:
        if not job.checkpoint(step).is_file():
            raise DataError(f"training {name} has passed step {step} without keeping it: remove {job.folder}")


def training_seconds(folder: Path, step: int) -> float:
    """The seconds that training up to a step took, from the log's rates; steps that were trained twice count once."""
    rates = {int(k): float(rate) for k, rate in re.findall(r"step=(\d+)\).* ([\d.]+) steps/s", log_of(folder))}
    seconds, previous = 0.0, 0
    for k in sorted(k for k in rates if k <= step):
        seconds += (k - previous) / max(rates[k], 1e-9)
        previous = k
    return seconds


def log_of(folder: Path) -> str:
    """The text of a run's log."""
    return (folder / "log.txt").read_text()


def measure(job: Job, row: Row) -> Row:
    """Sample a checkpoint and judge the samples."""
    sampler = ["--num-sampling-steps", str(row.sampling_steps), "--ckpt", str(job.checkpoint(row.step))]
    args = unguided("SDE", *sampler)
    precision.setup(args.precision)
    network = kinds.load_network(args, distributed.single().device, default_vae="ema")
    args = with_values(args, network.settings)
    if isinstance(row, ShapeRow):
        assert isinstance(JUDGE, ShapeJudge)
        judge_shapes(args, network, JUDGE, row)
    else:
        assert isinstance(JUDGE, Judge)
        row.fd, row.accuracy, _ = judge_samples(args, network, JUDGE, row.samples)
    row.seconds = training_seconds(job.folder, row.step)
    return row


JUDGE: Judge | ShapeJudge  # set in the processes that carry out jobs


def prepare(judge: Judge | ShapeJudge, devices: "multiprocessing.Queue[str]") -> None:
    """Make a process ready for jobs: give it the judge, and GPUs of its own."""
    global JUDGE
    JUDGE = judge
    signal.signal(signal.SIGTERM, stop)
    if visible := devices.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = visible


def carry_out(job: Job) -> Row:
    """Train steps that are not trained yet, and measure the first one."""
    if not all(job.checkpoint(step).is_file() for step in job.steps):
        train(job)
    return measure(job, job.row(job.steps[0]))


# ---- the program ---------------------------------------------------------------------------------------------------


def make_parser() -> Parser:
    """The parser of ablation.py."""
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="NAME", help="write NAME.csv and NAME-<table>.png")
    parser.add_argument("--table", choices=list(TABLES), default="types", help="set of variants to compare")
    parser.add_argument("--data-path", default=DIGITS, help="folder of images, 'digits', or a set of shapes")
    parser.add_argument("--size", default="XS/2", help="size of the models: XL/2, ..., XS/4; for shapes XS, S, B")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of training, a run for each")
    parser.add_argument(
        "--lrs",
        type=positive_float,
        nargs="+",
        default=[],
        metavar="LR",
        help="learning rates to choose from: every variant is trained with each on --tuning-seed, and with its best on "
        "--seeds; default: one learning rate for all",
    )
    parser.add_argument("--tuning-seed", type=int, default=9, help="seed of the runs that choose from --lrs")
    parser.add_argument("--max-steps", type=positive_int, default=1000, help="training steps")
    parser.add_argument("--every", type=positive_int, default=250, help="steps between measurements")
    parser.add_argument("--samples", type=positive_int, default=1500, help="samples for each measurement")
    parser.add_argument(
        "--num-sampling-steps", type=positive_int, default=60, help="time points of the SDE; the paper has 250"
    )
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="folder of all experiments")
    parser.add_argument(
        "--jobs", type=positive_int, help="runs at a time; default: one for each GPU, else for each CPU"
    )
    parser.add_argument("--nproc-per-node", type=positive_int, default=1, help="processes of one run, by torchrun")
    parser.add_argument("train_args", nargs="*", metavar="-- ...", help="arguments for train.py")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, sample and judge the variants of a table, and show the numbers.

    Raises:
        UsageError: arguments that cannot work together.
        DataError: a folder does not exist, data that cannot be used, or runs failed.
    """
    args = make_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, stop)
    if not args.out.parent.is_dir():
        raise DataError(f"--out {args.out}: folder {args.out.parent} does not exist")
    if is_latents(args.data_path):
        raise DataError(f"--data-path {args.data_path} holds cached latents; images are needed")
    if args.max_steps % args.every:
        raise UsageError(f"--max-steps {args.max_steps} is not a multiple of --every {args.every}")
    check_model(args)
    if args.lrs and args.tuning_seed in args.seeds:
        raise UsageError(f"--tuning-seed {args.tuning_seed} is one of --seeds, which are reported: choose another")
    steps = list(range(args.every, args.max_steps + 1, args.every))
    variants = list(TABLES[args.table])
    if args.data_path == DIGITS:  # one channel: a time a position is one an entry
        variants = [v for v in variants if "PATCH" not in v]
    table = args.out.with_name(args.out.name + ".csv")
    rows = read_rows(table, kind_of_row(args))
    tuning = [Job(args, v, args.tuning_seed, steps[-1:], lr) for v in variants for lr in args.lrs]
    reported: list[Job] = []
    lost: list[Job] = []  # reported runs that diverged, whose learning rates are out
    failure = None
    try:
        add_rows(args, tuning, rows, table)
        while True:
            out = {(job.variant, job.lr) for job in lost}
            usable = [job for job in tuning if (job.variant, job.lr) not in out]
            best = {v: best_rate(rows, [job for job in usable if job.variant == v]) for v in variants if args.lrs}
            reported = [Job(args, v, seed, steps, best.get(v)) for seed in args.seeds for v in variants]
            add_rows(args, reported, rows, table)
            if not args.lrs or not (diverging := diverged(rows, reported)):
                break
            lost += diverging
    except DataError as error:  # what there is is shown all the same
        failure = error
    if tuned := of_jobs(rows, tuning):
        print("\n".join([*tuning_lines(tuned, variants), ""]))
    for job in lost:
        print(f"{job.variant} diverged with seed {job.seed} at lr {job.lr:g}, which is out for all its seeds\n")
    if shown := of_jobs(rows, reported):
        show(args, shown, variants)
    if failure is not None:
        raise failure


def of_jobs(rows: Sequence[Row], jobs: Sequence[Job]) -> list[Row]:
    """The rows that jobs have made, at all their steps."""
    args = jobs[0].args if jobs else argparse.Namespace(every=1, max_steps=0)
    keys = {job.row(step).key for job in jobs for step in range(args.every, args.max_steps + 1, args.every)}
    return [row for row in rows if row.key in keys]


def best_rate(rows: Sequence[Row], jobs: Sequence[Job]) -> float:
    """The learning rate whose last checkpoint is closest to the data, among jobs that differ in it alone.

    Raises:
        DataError: there are none.
    """
    made = of_jobs(rows, jobs)
    if not made:
        raise DataError("a variant diverges at every learning rate of --lrs: smaller ones are needed")
    last = max(row.step for row in made)
    return min((row for row in made if row.step == last), key=lambda row: row.fd).lr


def diverged(rows: Sequence[Row], jobs: Sequence[Job]) -> list[Job]:
    """The jobs that ended farther from the data than they were when they were first measured."""
    courses = [(job, sorted(of_jobs(rows, [job]), key=lambda row: row.step)) for job in jobs]
    return [job for job, course in courses if course and course[-1].fd > course[0].fd]


def add_rows(args: argparse.Namespace, jobs: Sequence[Job], rows: list[Row], table: Path) -> None:
    """Carry out the jobs whose rows are missing; each row is written as it comes."""
    there = {row.key for row in rows}
    left = [replace(job, steps=[step for step in job.steps if job.row(step).key not in there]) for job in jobs]
    if left := [job for job in left if job.steps]:
        for row in run(args, left):
            rows.append(row)
            write_rows(rows, table)


def check_model(args: argparse.Namespace) -> None:
    """See that the table's families have models of the size, for these data.

    Raises:
        UsageError: there is none, or it is for another kind of data.
    """
    for family in dict.fromkeys(family for family, _ in TABLES[args.table].values()):
        model = f"{family}-{args.size}"
        if model not in kinds.MODELS:
            raise UsageError(f"--size {args.size}: there is no {model}; the models are {kinds.MODEL_NAMES}")
        if (kind := kinds.of_model(model)) is not kinds.of_data(args.data_path):
            raise UsageError(
                f"--table {args.table} is of models of {kind.THINGS}, not for --data-path {args.data_path}"
            )


def show(args: argparse.Namespace, shown: Sequence[Row], variants: Sequence[str]) -> None:
    """Draw the figure and print the table, at the steps that all variants have."""
    steps = set.intersection(*({r.step for r in shown if r.variant == v} for v in {r.variant for r in shown}))
    shown = [r for r in shown if r.step in steps]
    draw = draw_curves if len(variants) <= CURVES else draw_dots
    draw(shown, variants, args.out.with_name(f"{args.out.name}-{args.table}.png"))
    lines = [*table_lines(shown, variants), "", *comparison_lines(shown, variants)]
    if shapes := [row for row in shown if isinstance(row, ShapeRow)]:
        lines += ["", *shape_lines(shapes, variants)]
    print("\n".join(lines))


def run(args: argparse.Namespace, jobs: list[Job]) -> Iterator[Row]:
    """The rows of jobs, one by one; several jobs are carried out at a time.

    Raises:
        DataError: some failed, when all others are done.
    """
    judge: Judge | ShapeJudge
    if kinds.of_data(args.data_path) is kinds.SHAPES:
        judge = open_shape_judge(args.data_path)
    else:
        mirror = args.data_path != DIGITS and program.make_parser().parse_args(common_args(args)).flip
        judge = Judge(load_data_set(args), mirror=mirror)
        said = f"The classifier is right on {judge.accuracy:.1%} of the images it has not seen"
        print(said, file=sys.stderr, flush=True)
    gpus = visible_gpus()
    at_a_time = args.jobs or (max(1, len(gpus) // args.nproc_per_node) if gpus else os.cpu_count() or 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // (at_a_time * args.nproc_per_node))))
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for k in range(at_a_time):
        first = k * args.nproc_per_node
        devices.put(",".join(gpus[(first + i) % len(gpus)] for i in range(args.nproc_per_node)) if gpus else "")
    waiting, running, failures = list(jobs), dict[Future[Row], Job](), []
    with (
        ProcessPoolExecutor(at_a_time, context, prepare, (judge, devices)) as pool,
        progress.bar(total=sum(len(job.steps) for job in jobs), desc="checkpoints") as bar,
    ):
        try:
            while waiting or running:
                while waiting and len(running) < at_a_time:  # what is handed over cannot be taken back
                    job = waiting.pop(0)
                    running[pool.submit(carry_out, job)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    try:
                        yield future.result()
                    except DataError as error:
                        failures.append(str(error))
                    else:
                        bar.update()
                        if job.steps[1:]:
                            waiting.insert(0, replace(job, steps=job.steps[1:]))
        except BrokenProcessPool:
            raise DataError("a process that trains or measures was killed (was there too little memory?)") from None
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    if failures:
        raise DataError(f"{len(failures)} of {len(jobs)} runs failed; the last: {failures[-1]}")


def load_data_set(args: argparse.Namespace) -> ImageDataset:
    """The data set as train.py has it."""
    given = program.make_parser().parse_args(common_args(args))
    return load_dataset(args.data_path, given.image_size, given.channels if given.vae == "none" else 3)


def visible_gpus() -> list[str]:
    """The names of the GPUs that this program may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [str(k) for k in range(torch.cuda.device_count())]


def stop(signum: int, frame: object) -> None:
    """End by an exception, which ends subprocesses, too."""
    sys.exit(128 + signum)


if __name__ == "__main__":
    run_program(main)
