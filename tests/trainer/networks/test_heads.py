from __future__ import annotations

import torch

from trainer.networks.heads import Categorical, Head, Scale, Squared

SCALE = Scale(-2.0, 2.0)


def fit(head: Head, actions: torch.Tensor) -> torch.Tensor:
    """Outputs, the same for every action, of the least mean loss."""
    torch.manual_seed(0)
    outputs = torch.nn.Parameter(0.1 * torch.randn(1, head.num_outputs))
    optimizer = torch.optim.Adam([outputs], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        head.loss(outputs.expand(len(actions), -1), actions).mean().backward()
        optimizer.step()
    return outputs.detach()


def draws(head: Head, count: int) -> torch.Tensor:
    return torch.rand(count, head.num_draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_least_loss_is_at_the_experts_action() -> None:
    head, wanted = Squared(2, SCALE), torch.tensor([[0.43, -2.0]])
    outputs = fit(head, wanted)
    for temperature in (0.0, 1.0):
        chosen = head.choose(outputs, draws(head, 1), temperature)
        torch.testing.assert_close(chosen.float(), wanted, atol=0.02, rtol=0)


def test_a_categorical_samples_by_probability_and_takes_the_likeliest_at_temperature_zero() -> None:
    head = Categorical(3)
    logits = torch.tensor([[0.0, 1.0, 0.0]]).expand(2000, -1)
    shares = torch.bincount(head.choose(logits, draws(head, 2000)), minlength=3) / 2000
    torch.testing.assert_close(shares, logits[0].softmax(dim=0), atol=0.04, rtol=0)
    assert (head.choose(logits, draws(head, 2000), temperature=0) == 1).all()
    assert len(head.choose(logits, draws(head, 2000), temperature=1e6).unique()) == 3
