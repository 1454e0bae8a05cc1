from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.networks.attention import attend_back

LONG = 64  # positions


def inputs(length: int, dtype: torch.dtype = torch.float32, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of 3 heads of 8, laid out as a projection leaves them."""
    generator = torch.Generator().manual_seed(length)
    values = torch.randn(rows, length, 3, 3, 8, generator=generator).to(dtype).permute(2, 0, 3, 1, 4)
    query, key, value = (x.detach().requires_grad_() for x in values)
    return query, key, value


def reference(query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float) -> Tensor:
    positions = torch.arange(query.shape[2])
    back = positions[:, None] - positions
    mask = (back >= 0) & (back < (window or len(positions)))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("window", [None, 1, 7, LONG + 5])
@pytest.mark.parametrize("length", [1, LONG - 1, LONG, 2 * LONG + 3])
def test_attention_back_gives_the_numbers_and_gradients_of_attention_with_a_mask(
    length: int, window: int | None
) -> None:
    found, expected = inputs(length), inputs(length)
    ours, whole = attend_back(*found, window, 0.3), reference(*expected, window, 0.3)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights).sum().backward()
    (whole * weights).sum().backward()
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_scores_are_not_rounded() -> None:
    found, expected = inputs(100, torch.bfloat16), inputs(100)
    for one, other in zip(found, expected, strict=True):
        other.data.copy_(one.data)
    # Scores of tens: as bfloat16 they would be off by a quarter and the weights by a third.
    with torch.autocast("cpu", torch.bfloat16):
        ours = attend_back(*found, 40, 8.0)
    whole = reference(*expected, 40, 8.0)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), whole, rtol=0, atol=0.03)
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights).sum().backward()
    (whole * weights).sum().backward()
    for one, other in zip(found, expected, strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).norm() < 0.02 * other.grad.norm()
