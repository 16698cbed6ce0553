"""Train a tiny policy by its reward, with a loss on `xentx.linear_per_row`.

    python examples/policy_gradient/train.py [--steps 200]

The policy sees a letter and writes the next four. A reward of 1 is given for each that continues
the alphabet. The loss is that of REINFORCE with a baseline and an entropy bonus. It needs the
log-probabilities of the actions and the entropies, which `linear_per_row` computes from the last
layer without storing its logits.
"""

import argparse

import torch

import xentx

LETTERS, FEATURES, TIME, BATCH = 26, 32, 4, 128
RATE, BONUS = 2.0, 0.01


def rollout(weights: list[torch.Tensor], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Sample letters. Return those that the policy saw, those that it wrote, and the rewards."""
    embedding, head = weights
    seen = torch.randint(LETTERS, (BATCH,), generator=generator)
    states, actions = [], []
    for _ in range(TIME):
        states.append(seen)
        p = torch.softmax(torch.tanh(embedding[seen]) @ head.T, -1)
        seen = torch.multinomial(p, 1, generator=generator)[:, 0]
        actions.append(seen)
    state, action = torch.stack(states, 1), torch.stack(actions, 1)
    return state, action, (action == (state + 1) % LETTERS).float()


def policy_loss(
    hidden: torch.Tensor, head: torch.Tensor, action: torch.Tensor, advantage: torch.Tensor
) -> torch.Tensor:
    """Return the loss whose gradient is that of the expected reward, with an entropy bonus."""
    rows = xentx.linear_per_row(hidden, head, action)
    return -(advantage * rows.log_prob + BONUS * rows.entropy).mean()


def train(steps: int) -> list[float]:
    """Return the mean reward of each step."""
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(LETTERS, FEATURES, generator=generator).requires_grad_(),
        (0.1 * torch.randn(LETTERS, FEATURES, generator=generator)).requires_grad_(),
    ]
    rewards = []
    for _ in range(steps):
        with torch.no_grad():
            state, action, reward = rollout(weights, generator)
        embedding, head = weights
        loss = policy_loss(torch.tanh(embedding[state]), head, action, reward - reward.mean())
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(RATE * gradient)
        rewards.append(reward.mean().item())
    return rewards


def main() -> None:
    """Print the mean reward every 20 steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    for step, reward in enumerate(train(parser.parse_args().steps)):
        if step % 20 == 0:
            print(f"step {step:3}: mean reward {reward:.2f}")


if __name__ == "__main__":
    main()
