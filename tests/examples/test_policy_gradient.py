"""The policy of the example learns, and its loss is that of the naive formula."""

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from xentx.testing import requested_frameworks  # noqa: E402

FILE = Path(__file__).parents[2] / "examples" / "policy_gradient" / "train.py"
pytestmark = pytest.mark.skipif(
    "torch" not in requested_frameworks(), reason="PyTorch is not asked for"
)


@pytest.fixture(scope="module")
def example():
    # By its path: another example has a train.py, too.
    spec = importlib.util.spec_from_file_location("policy_gradient", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_policy_learns(example):
    rewards = example.train(60)
    assert rewards[0] < 0.1
    assert rewards[-1] > 0.6


def test_the_loss_is_that_of_the_naive_formula(example):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 4, 3, generator=generator).requires_grad_()
    head = torch.randn(7, 3, generator=generator).requires_grad_()
    action = torch.randint(7, (5, 4), generator=generator)
    advantage = torch.randn(5, 4, generator=generator)
    log_p = torch.log_softmax(hidden @ head.T, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    picked = log_p.gather(-1, action[..., None])[..., 0]
    naive = -(advantage * picked + example.BONUS * entropy).mean()
    loss = example.policy_loss(hidden, head, action, advantage)
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (hidden, head)), torch.autograd.grad(naive, (hidden, head))
    )
