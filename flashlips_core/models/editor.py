"""What every lip editor is, in the paper's letters: one pass from a frame's latents to the same frame with another mouth.

B batch, R references, C latent channels (4), P pose numbers (12), h w latent cells of the crop, h' w' of the editor's window.

=========  ===================================================================================================================
z_src      the frame's latents; z_masked is the same without the lower face, which stage 1 must not see
z_ref      latents of the clip's reference frames; f_ref is the network that reads them, once per clip
z_lips     the lip pose, the same in every cell
z_input    Concat[z_masked, f_ref(z_ref), z_lips] (Eq. 1): what the backbone reads
z_target   z_src - z_masked (Eq. 2): what it estimates. A mask-free editor (LipsChange) is given z_src in place of z_masked, and
           estimates what the wanted mouth has more than the frame's own
z_hat      z_masked + the estimate of z_target (Eq. 3): the edited latents
=========  ===================================================================================================================

An L1 between z_hat and z_src is one between the estimate and z_target, so training compares z_hat.

Ours: an editor has a window, the part of a crop that it reads and may change; what lies outside costs no work and stays as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from ..types import POSE_DIM

Window = tuple[float, ...]  # shares of the crop: left, top, right, bottom
WHOLE_CROP: Window = (0.0, 0.0, 1.0, 1.0)
VIEW_MARGIN = 3  # cells around the window: what a convolutional codec needs there to be exact to the eye, and alpha's soft edge
NUM_REFERENCES = 4  # paper: more gain little, where nothing is copied from them


@dataclass(frozen=True)
class EditorConfig:
    """What the configs of all editors have."""

    pose_dim: int = POSE_DIM
    latent_channels: int = 4
    window: Window = WHOLE_CROP
    is_copying: bool = False  # ours: what a reference already shows is copied rather than redrawn, see ``copying``


@dataclass(frozen=True)
class EditorContext:
    """What the references of a clip come to, computed once; each editor adds its own features of them."""

    latents: Tensor  # (1 or B, R, C, h', w') the references themselves, inside the window
    poses: Tensor | None  # (1 or B, R, P) their lip poses; None where nobody has read them


Context = TypeVar("Context", bound=EditorContext)


class Editor(nn.Module, ABC, Generic[Context]):
    """The contract: :meth:`prepare_references` once per clip, then the editor is called for any batch of its frames.

    A new backbone implements ``prepare_references`` and ``residual``, and is named in ``loading.NETWORKS``.
    """

    num_references = NUM_REFERENCES  # how many a caller should choose; any number in any order works

    def __init__(self, config: EditorConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def prepare_references(self, z_ref: Tensor, poses: Tensor | None = None) -> Context:
        """f_ref on a clip's references, (1 or B, R, C, h, w).

        Args:
            poses: (1 or B, R, P) what their lips do; with it the editor knows which of them to copy from.
        """

    @abstractmethod
    def residual(self, z_masked: Tensor, context: Context, poses: Tensor) -> Tensor:
        """The estimate of z_target = z_src - z_masked (Eq. 2) inside the window, (B, C, h', w'); arguments as for a call."""

    def forward(self, z_masked: Tensor, context: Context, poses: Tensor) -> Tensor:
        """z_hat, the edited latents (B, C, h, w); outside the window they are what was given.

        Args:
            z_masked: (B, C, h, w) scaled latents of frames, without the lower face in stage 1; z_src for a mask-free editor.
            context: of :meth:`prepare_references`, of batch B, or of batch 1 for B frames of one clip.
            poses: (B, P) standardised lip poses.
        """
        z_target = self.residual(z_masked, context, poses)
        height, width = z_masked.shape[-2:]
        rows, columns = self.window_slices((height, width))
        return z_masked + F.pad(z_target, (columns.start, width - columns.stop, rows.start, height - rows.stop))  # Eq. 3

    def window_slices(self, cells: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the window in latents of (h, w) cells."""
        left, top, right, bottom = self.config.window
        return slice(round(top * cells[0]), round(bottom * cells[0])), slice(round(left * cells[1]), round(right * cells[1]))

    def view_slices(self, cells: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns that must be encoded and may be decoded: the window and ``VIEW_MARGIN`` cells around it."""
        rows, columns = self.window_slices(cells)
        return _grown(rows, cells[0]), _grown(columns, cells[1])

    def cut(self, latents: Tensor) -> Tensor:
        """The window's part of latents or of maps of their size, (..., h, w) -> (..., h', w')."""
        rows, columns = self.window_slices((latents.shape[-2], latents.shape[-1]))
        return latents[..., rows, columns]


def _grown(cells: slice, count: int) -> slice:
    return slice(max(cells.start - VIEW_MARGIN, 0), min(cells.stop + VIEW_MARGIN, count))
