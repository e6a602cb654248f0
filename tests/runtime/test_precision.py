import pytest
import torch

from runtime import precision
from runtime.errors import UsageError


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
