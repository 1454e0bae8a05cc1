from __future__ import annotations

import pytest
import torch

from trainer.networks.heads import ActionMixture, Bins, Categorical, Head, Scale, Squared

SCALE = Scale(-2.0, 2.0)
CONTINUOUS_HEADS = [Squared(2, SCALE), Bins(2, 21, SCALE), ActionMixture(2, 3, SCALE)]


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


@pytest.mark.parametrize("head", CONTINUOUS_HEADS, ids=lambda head: type(head).__name__)
def test_the_least_loss_is_at_the_experts_action(head: Head) -> None:
    wanted = torch.tensor([[0.43, -2.0]])
    outputs = fit(head, wanted)
    for how in ("mean", "likeliest", "sample"):
        chosen = head.choose(outputs, how, draws(head, 1))  # type: ignore[arg-type]
        torch.testing.assert_close(chosen.float(), wanted, atol=0.21, rtol=0)
    torch.testing.assert_close(head.choose(outputs, "mean", draws(head, 1)).float(), wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize("head", CONTINUOUS_HEADS[1:], ids=lambda head: type(head).__name__)
def test_heads_with_modes_sample_left_or_right_in_the_experts_shares_and_never_the_middle(head: Head) -> None:
    left, right = torch.tensor([-1.6, 1.0]), torch.tensor([1.2, 1.0])
    outputs = fit(head, torch.stack([left] * 3 + [right]))
    sampled = head.choose(outputs.expand(400, -1), "sample", draws(head, 400))
    near_left, near_right = (abs(sampled[:, 0] - mode[0]) < 0.4 for mode in (left, right))
    assert (near_left | near_right).float().mean() > 0.97
    assert 0.65 < near_left.float().mean() < 0.85
    assert abs(head.choose(outputs, "likeliest", draws(head, 1))[0, 0] + 1.6) < 0.2
    assert abs(head.choose(outputs, "mean", draws(head, 1))[0, 0] + 0.9) < 0.1
    assert abs(head.choose(outputs, "sample", draws(head, 1), temperature=0)[0, 0] + 1.6) < 0.2


def test_a_categorical_samples_by_probability_and_takes_the_likeliest_at_temperature_zero() -> None:
    head = Categorical(3)
    logits = torch.tensor([[0.0, 1.0, 0.0]]).expand(2000, -1)
    shares = torch.bincount(head.choose(logits, "sample", draws(head, 2000)), minlength=3) / 2000
    torch.testing.assert_close(shares, logits[0].softmax(dim=0), atol=0.04, rtol=0)
    assert (head.choose(logits, "sample", draws(head, 2000), temperature=0) == 1).all()
    assert len(head.choose(logits, "sample", draws(head, 2000), temperature=1e6).unique()) == 3


def test_an_action_between_bins_is_not_rounded() -> None:
    head = Bins(1, 5, Scale())
    outputs = torch.log(torch.tensor([[1e-9, 1e-9, 0.7, 0.3, 1e-9]]))
    torch.testing.assert_close(head.choose(outputs, "mean", draws(head, 1)), torch.tensor([[0.15]]), atol=1e-4, rtol=0)
    nearer = [head.loss(outputs, torch.tensor([[value]])).item() for value in (0.15, 0.3, 0.5)]
    assert nearer == sorted(nearer)
