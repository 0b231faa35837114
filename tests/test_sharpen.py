"""The unsharp mask: as much detail as wanted, no colours, no more than its reach."""

from __future__ import annotations

import pytest
import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from flashlips_core.pipeline import DubSettings
from flashlips_core.sharpen import STRONGEST, UnsharpMask, fine_detail, matching_mask
from flashlips_core.types import FlashLipsError

REGION = torch.zeros(64, 64, dtype=torch.bool)
REGION[16:48, 16:48] = True


def pictures(count: int = 2) -> Tensor:
    """Smooth, with an edge across."""
    noise = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    return 0.5 * gaussian_blur2d(noise, (9, 9), (1.5, 1.5), border_type="replicate")


def softened(images: Tensor, sigma: float) -> Tensor:
    return gaussian_blur2d(images, (9, 9), (sigma, sigma), border_type="replicate")


def test_a_matching_mask_gives_exactly_the_detail_that_is_shown() -> None:
    shown = pictures()
    soft = softened(shown, 0.5)
    mask = matching_mask(soft, shown, REGION, scale=1.0)
    assert 0 < mask.strength < STRONGEST
    assert fine_detail(soft, REGION) < 0.9 * fine_detail(shown, REGION)
    assert fine_detail(mask(soft), REGION) == pytest.approx(fine_detail(shown, REGION), rel=1e-3)
    half = matching_mask(soft, shown, REGION, scale=1.0, share=0.5)
    assert half.strength == pytest.approx(mask.strength / 2)


def test_what_pasting_into_a_smaller_face_takes_is_put_back_too() -> None:
    shown = softened(pictures(), 2.0)
    assert matching_mask(shown, shown, REGION, scale=1.0).strength == 0
    mask = matching_mask(shown, shown, REGION, scale=3.0)
    assert mask.sigma == 3.0
    assert mask.strength > 0


def test_pictures_that_are_sharp_enough_stay_as_they_are() -> None:
    shown = pictures()
    mask = matching_mask(1.2 * shown, shown, REGION, scale=1.0)
    assert mask.strength == 0
    assert mask(shown) is shown
    assert mask.reach == 0


def test_noise_that_cannot_be_matched_does_not_outline_edges() -> None:
    shown = pictures()
    noisy = shown + 0.3 * torch.randn(shown.shape, generator=torch.Generator().manual_seed(1))
    assert matching_mask(shown, noisy, REGION, scale=1.0).strength == STRONGEST
    flat = torch.zeros_like(shown)
    assert matching_mask(flat, noisy, REGION, scale=1.0).strength == 0


def test_the_mask_changes_light_alone_and_only_within_its_reach() -> None:
    mask, image = UnsharpMask(0.5, 1.5), pictures(1)
    change = mask(image) - image
    torch.testing.assert_close(change[:, 0], change[:, 2])
    moved = image.clone()
    moved[..., 32, 32] += 0.5
    touched = (mask(moved) - mask(image)).abs().amax(1)[0] > 1e-7
    rows, columns = touched.nonzero().T
    assert mask.reach == 3
    assert rows.min() >= 29 and rows.max() <= 35 and columns.min() >= 29 and columns.max() <= 35


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused_before_any_work(share) -> None:
    with pytest.raises(FlashLipsError, match="share from 0"):
        DubSettings(sharpen=share)
