"""Long checks, by `make drill`."""

import pytest

import train

from .faults import metrics

DIGITS = "--data-path digits --vae none --image-size 8 --num-classes 10 --num-workers 0 --model ComboStoc-XS/2".split()


@pytest.mark.drill
def test_bf16_follows_the_loss_of_fp32_for_a_thousand_steps(tmp_path):
    """Under the same seed, within 2 % in every hundred steps."""
    losses = {}
    for precision in ("fp32", "bf16"):
        args = [*DIGITS, "--results-dir", str(tmp_path), "--exp", precision, "--precision", precision]
        train.main([*args, "--global-batch-size", "128", "--lr", "1e-3", "--max-steps", "1000", "--log-every", "100"])
        rows = metrics(tmp_path / f"ComboStoc-XS-2-{precision}")
        losses[precision] = [float(row["loss"]) for row in rows]
    print("\nsteps     fp32     bf16  difference")
    for k, (a, b) in enumerate(zip(losses["fp32"], losses["bf16"], strict=True)):
        print(f"{100 * (k + 1):5d}  {a:.5f}  {b:.5f}  {b / a - 1:+.2%}")
    assert len(losses["fp32"]) == 10 and losses["fp32"][-1] < 0.7 * losses["fp32"][0]
    for a, b in zip(losses["fp32"], losses["bf16"], strict=True):
        assert abs(b / a - 1) < 0.02
