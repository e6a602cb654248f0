"""Evaluation during training: how a signal ends it, and where its numbers go."""

import argparse
import time
from typing import Any

from models import SiT
from runtime import distributed
from runtime.signals import StopRequest
from sampling.monitor import Evaluator
from training.experiment import Experiment
from transport import Transport


def first_columns(args: argparse.Namespace, step: int) -> dict[str, Any]:
    """The first columns of a row of evaluations.csv: step, features, reference and counts. Shapes have no features."""
    features = {"features": args.eval_features} if args.eval_features else {}
    reference = args.eval_reference or args.data_path
    counts = {"samples": args.eval_samples, "sampling_steps": args.eval_sampling_steps}
    return {"step": step, **features, "reference": reference, **counts}


def report_evaluation(
    evaluator: Evaluator,
    args: argparse.Namespace,
    step: int,
    model: SiT,
    transport: Transport,
    request: StopRequest,
    experiment: Experiment,
) -> int:
    """Evaluate, and write the numbers to log.txt, evaluations.csv and Weights & Biases.

    Where samples are not finite, a warning takes the place of the numbers.

    Returns:
        The number of a signal that asked any of the processes to stop, which ends the evaluation without numbers; or 0.
    """
    start_time = time.monotonic()
    signum = 0

    def stop() -> bool:
        nonlocal signum
        signum = distributed.greatest([request.signum])[0]
        return bool(signum)

    try:
        results = evaluator.evaluate(model, transport, stop)
    except FloatingPointError as error:
        experiment.logger.info(f"Warning: no evaluation at step {step}: {error}")
        results = {}
    if results:
        experiment.log_evaluation(first_columns(args, step), results, time.monotonic() - start_time)
    return signum
