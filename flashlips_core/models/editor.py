"""The part of a crop that an editor reads and may change; what lies outside costs no work and stays as it is."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

Window = tuple[float, ...]  # shares of the crop: left, top, right, bottom
WHOLE_CROP: Window = (0.0, 0.0, 1.0, 1.0)
VIEW_MARGIN = 3  # cells around the window: what a convolutional codec needs there to be exact to the eye, and alpha's soft edge


class WindowedEditor(nn.Module):
    """A lip editor that works inside ``window`` alone."""

    num_references = 4  # how many a caller should choose; any number works (paper: more than 4 gain little)

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def window_slices(self, cells: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the window in latents of (h, w) cells."""
        left, top, right, bottom = self.window
        return slice(round(top * cells[0]), round(bottom * cells[0])), slice(round(left * cells[1]), round(right * cells[1]))

    def view_slices(self, cells: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns that must be encoded and may be decoded: the window and ``VIEW_MARGIN`` cells around it."""
        rows, columns = self.window_slices(cells)
        return _grown(rows, cells[0]), _grown(columns, cells[1])

    def cut(self, latents: Tensor) -> Tensor:
        """The window's part of latents or of maps of their size, (..., h, w) -> (..., h', w')."""
        rows, columns = self.window_slices((latents.shape[-2], latents.shape[-1]))
        return latents[..., rows, columns]

    def added(self, z_input: Tensor, residual: Tensor) -> Tensor:
        """z_hat = z_input + residual (Eq. 3), which is zero outside the window. (B, C, h, w) and (B, C, h', w')"""
        height, width = z_input.shape[-2:]
        rows, columns = self.window_slices((height, width))
        return z_input + F.pad(residual, (columns.start, width - columns.stop, rows.start, height - rows.stop))


def _grown(cells: slice, count: int) -> slice:
    return slice(max(cells.start - VIEW_MARGIN, 0), min(cells.stop + VIEW_MARGIN, count))
