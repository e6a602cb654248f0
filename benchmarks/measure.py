"""Measuring tools of the benchmarks: interleaved timing, peak memory, model FLOPs and a device's peak."""

import ctypes
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import SiT
from runtime import precision
from runtime.files import replacing
from train_utils import ModelConfig

# Dense TFLOP/s from the data sheets: bf16, tf32, fp32.
PEAK_TFLOPS = {
    "B200": (2250, 1125, 75),
    "H200": (989, 495, 67),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 418, 60),
    "H100": (989, 495, 67),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 91.6),
    "RTX 4090": (165, 82.6, 82.6),
}


def synchronize(device: torch.device) -> None:
    """Wait for a GPU's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    cases: Mapping[str, Callable[[], object]], rounds: int, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every case in every round.

    Cases run one after the other, in an order that rotates, so that a machine that slows down for a while slows down
    all of them.

    Args:
        cases: functions to time, by name. Each runs once before, for compilation and memory.
        rounds: timings of each case.
        repeats: runs that one timing spans; the host waits for the device at both ends only.
    """
    names = list(cases)
    for name in names:
        cases[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            synchronize(device)
            start = time.perf_counter()
            for _ in range(repeats):
                cases[name]()
            synchronize(device)
            seconds[name].append((time.perf_counter() - start) / repeats)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """The median over rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def peak_memory(run: Callable[[], None], own_bytes: int, device: torch.device) -> int:
    """The bytes that a run needs at its peak: its own tensors' between runs, and those that a run adds."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return own_bytes + torch.cuda.max_memory_allocated(device) - before
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # give back what earlier runs freed
    status = Path("/proc/self/status")
    if not status.is_file():
        run()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark restarts at the present size
    before = _status_bytes(status, "VmRSS")
    run()
    return own_bytes + _status_bytes(status, "VmHWM") - before


def _status_bytes(status: Path, field: str) -> int:
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def model_flops(config: ModelConfig, t_shapes: list[tuple[int, ...]], *, training: bool) -> int:
    """Floating-point operations of the model on one batch: matrix products, two per multiply-add, nothing recomputed.

    Args:
        t_shapes: shapes of the timesteps of the batch's segments, by which conditioning tokens are counted.
        training: count the backward pass too.
    """
    n = sum(shape[0] for shape in t_shapes)
    with torch.device("meta"):
        model: SiT = config.build()
        x = torch.empty(n, config.in_channels, config.input_size, config.input_size)
        y = torch.zeros(n, dtype=torch.long)
        t = [torch.empty(shape) for shape in t_shapes]
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(training):
        output = model.train(training)(x, t, y)
        if training:
            output.sum().backward()
    return counter.get_total_flops()


def peak_flops(device: torch.device, precision_name: str) -> tuple[float, str]:
    """The peak FLOP/s of a device, and the number's source: its data sheet, or a large matrix product timed now."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for key, peaks in PEAK_TFLOPS.items():
            if all(word in name for word in key.split()):
                return peaks[("bf16", "tf32", "fp32").index(precision_name)] * 1e12, "data sheet"
    precision.setup(precision_name)
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision_name == "bf16" else torch.float32)
    product = torch.empty_like(a)
    (seconds,) = interleaved({"product": lambda: torch.mm(a, a, out=product)}, 5, 4, device).values()
    return 2 * size**3 / min(seconds), "matrix product"


def environment(device: torch.device) -> dict[str, Any]:
    """The device and the versions."""
    if device.type == "cuda":
        name, count = torch.cuda.get_device_name(device), 1
    else:
        model = [x for x in _lines("/proc/cpuinfo") if x.startswith("model name")]
        name, count = model[0].partition(":")[2].strip() if model else platform.processor(), torch.get_num_threads()
    return {
        "device": name if device.type == "cuda" else f"{name}, {count} threads",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def conclude(report: dict[str, Any], path: Path | None) -> None:
    """Print the environment of a report, and write the report to a file."""
    print(f"\n{report['environment']}")
    if path is not None:
        with replacing(path) as beside:
            beside.write_text(json.dumps(report, indent=1) + "\n")
