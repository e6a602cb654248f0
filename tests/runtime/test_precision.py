import pytest
import torch

from runtime import precision
from runtime.errors import UsageError


def test_exact_holds_within_and_what_was_is_restored():
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        for name in ("tf32", "fp32"):
            precision.setup(name)
            with pytest.raises(ZeroDivisionError), precision.exact():
                assert not any(backend.allow_tf32 for backend in backends)
                raise ZeroDivisionError
            assert {backend.allow_tf32 for backend in backends} == {name == "tf32"}
    finally:
        precision.setup("fp32")


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UsageError, match=r"--compile needs a compiler; none of g\+\+, gcc, clang"):
        precision.check_compiler()


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_precision(name):
    """fp32 forbids TF32; bf16 is autocast and nothing else is."""
    try:
        precision.setup(name)
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is (name != "fp32")
        with precision.autocast(name, torch.device("cpu")):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if name == "bf16" else torch.float32)
    finally:
        precision.setup("fp32")
