"""Detector: backbone → encoder → decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from detectors.adapters import aifi_map, aifi_taps
from detectors.catalog import DetectorSpec
from detectors.decoders.dfine import DFINEDecoder
from detectors.decoders.prediction import Targets
from detectors.decoders.rtdetr import RTDETRDecoder
from detectors.hybrid_encoder import HybridEncoder
from detectors.input_size import check_input_size
from vfmdistill.errors import InputError

if TYPE_CHECKING:
    from vfmdistill.adapters.protocol import Tap


class Detector(nn.Module):
    """A detector of the DETR family, for images of any size divisible by 32.

    It has the two methods of a `vfmdistill.StudentAdapter`, so `vfmdistill.attach` taps it at AIFI by itself.

    Args:
        backbone: images in, maps out, fine to coarse.
        encoder: as many maps in and out.
        decoder: maps in, queries out.
        spec: the settings that the parts were built with.
        class_names: names of the classes in the order of the logits, if known.

    Attributes:
        category_ids: the data set's id of each class, if the detector was trained on one.
        license: licence of the weights, as an SPDX identifier where there is one; None while it is unknown.
        deployed: made by `detectors.deploy`: for inference only.
    """

    def __init__(
        self,
        backbone: nn.Module,
        encoder: HybridEncoder,
        decoder: DFINEDecoder | RTDETRDecoder,
        *,
        spec: DetectorSpec,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.encoder, self.decoder = backbone, encoder, decoder
        self.spec = spec
        self.class_names = None if class_names is None else list(class_names)
        self.category_ids: list[int] | None = None
        self.license: str | None = None
        self.deployed = False

    @property
    def num_classes(self) -> int:
        """Number of classes, the last dimension of the logits."""
        return self.decoder.num_classes

    def train(self, mode: bool = True) -> Detector:
        """Set training or evaluation mode.

        Raises:
            InputError: training mode of a deployed detector.
        """
        if mode and self.deployed:
            raise InputError(
                "a deployed detector cannot be trained: its norms are folded in; train the one it came from."
            )
        return super().train(mode)

    def forward(self, images: Tensor, targets: Targets | None = None) -> dict[str, Any]:
        """Detect objects.

        Args:
            images: RGB in [0, 1], not normalised further, shape (N, 3, H, W); H and W divisible by 32.
            targets: in training, for each image `labels` (M,), int64, and `boxes` (M, 4), cxcywh in [0, 1]; M may be 0,
                and further keys are ignored. Without targets there is no denoising.

        Returns:
            `pred_logits` (N, Q, num_classes) and `pred_boxes` (N, Q, 4), cxcywh in [0, 1]; in training also what the
            criterion needs, see `DFINEDecoder.forward` and `RTDETRDecoder.forward`. Q is at most the number of cells
            of all maps.

        Raises:
            InputError: `images` has another shape or dtype, or there are not as many targets.
        """
        _check_images(images)
        if targets is not None and len(targets) != len(images):
            raise InputError(f"got {len(targets)} targets for {len(images)} images; give one dict for each image.")
        outputs: dict[str, Any] = self.decoder(self.encoder(self.backbone(images)), targets)
        return outputs

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        """Return the module that is aligned with a teacher: AIFI."""
        return aifi_taps(student)

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        """Return AIFI's output, a map (N, C, H / 32, W / 32)."""
        return aifi_map(tap, output, images)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images must have the shape (N, 3, H, W), got {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise InputError(f"images must hold RGB in [0, 1] as floating point, got {images.dtype}; divide by 255.")
    check_input_size(tuple(images.shape[2:]))
