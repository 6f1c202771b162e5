"""Teacher: a frozen vision foundation model that maps images to a dense feature map on any grid."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmdistill.errors import InputError
from vfmdistill.teachers.catalog import IMAGENET_MEAN, IMAGENET_STD, Rgb, TeacherSpec, loader_for, teacher_spec

NamedRange: TypeAlias = Literal["unit", "imagenet", "uint8"]
InputRange: TypeAlias = NamedRange | tuple[Rgb, Rgb]

_PROBE_SIZE = 224  # pixels; the size that most networks for images can take


class TeacherFeatures(NamedTuple):
    """What a teacher says about a batch of images.

    Attributes:
        map: (N, C, h, w), one vector per cell of the grid that was asked for, in the teacher's dtype.
        summary: (N, D), one vector per image, or None if the network has none. D may differ from C.
    """

    map: Tensor
    summary: Tensor | None


class Teacher(nn.Module):
    """A frozen network that gives the student something to be like.

    Its parameters need no gradient, it stays in eval mode whatever `train` is told, its forward records no gradient
    and runs outside autocast, in the teacher's own dtype. A module that is given is frozen in place.

    Args:
        source: a name of the catalogue (`list_teachers`), ``timm:MODEL``, or a module that maps (N, 3, H, W) to
            (N, C, h, w), or to a pair of that map and a summary.
        pretrained: take the published weights; False gives random ones. Without meaning for a module.
        weights: a local file to take instead, safetensors or PyTorch, in timm's or the authors' naming.
        dtype: of the network; by default float32, for a module its own.
        compile: compile the network with `torch.compile` at its first forward.
        spec: what a given module expects of its images. Without it, the module gets RGB in [0, 1], neither normalised
            nor resized, and is run once on a black 224 × 224 image to see the width of its map.

    Raises:
        UnknownNameError: no teacher has that name; the nearest ones are listed.
        WeightsError: the weights cannot be had, read or fitted.
        InputError: an option does not go with this source, or the module gives no map.
    """

    def __init__(
        self,
        source: str | nn.Module,
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        spec: TeacherSpec | None = None,
    ) -> None:
        super().__init__()
        if isinstance(source, nn.Module):
            if weights is not None:
                raise InputError("weights= goes with a teacher's name; load them into the module before giving it.")
            self.network = source
        else:
            if spec is not None:
                raise InputError(f"spec= goes with a module; teacher {source!r} has its own. Drop spec=.")
            spec = teacher_spec(source)
            self.network = loader_for(spec)(spec, pretrained, None if weights is None else Path(weights))
            dtype = dtype or torch.float32
        if dtype is not None:
            if not dtype.is_floating_point:
                raise InputError(f"a teacher cannot run in {dtype}; expected a floating-point dtype.")
            self.network.to(dtype)
        self.eval().requires_grad_(False)
        self._resizes = spec is not None
        self.spec: TeacherSpec = spec or _describe(self.network, self.dtype)
        if compile:
            self.network.compile()

    @property
    def embed_dim(self) -> int:
        """Channels of the map."""
        return self.spec.embed_dim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network runs in: that of its first floating-point parameter or buffer."""
        return next((t.dtype for t in _tensors(self.network) if t.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device | None:
        """Where the network is, or None if it has neither parameters nor buffers."""
        return next((t.device for t in _tensors(self.network)), None)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: a frozen network has no training mode."""
        return super().train(False)

    def forward(self, images: Tensor, grid: tuple[int, int], input_range: InputRange = "unit") -> TeacherFeatures:
        """Return the feature map of a batch of images on a grid.

        The images are brought to grid × patch_size: by averaging whole blocks of pixels where the ratio is a whole
        number in both directions (patch 16, student's stride 32: 2 × 2 blocks), else by antialiased bilinear resizing.
        Then they are normalised as the teacher was trained. A map that comes out on another grid, as from a module
        without a spec or a network that pads, is brought to the one asked for in the same way.

        Args:
            images: (N, 3, H, W), RGB.
            grid: (height, width) of the map in cells, usually that of the student's map.
            input_range: what the images hold: ``"unit"`` [0, 1], ``"imagenet"`` normalised with ImageNet's mean and
                standard deviation, ``"uint8"`` [0, 255] in that dtype, or the (mean, std) per channel that they were
                normalised with.

        Raises:
            InputError: images, grid or input_range are not as described, the images are on another device than the
                teacher, or the network cannot take images of that size.
        """
        self._check(images, grid, input_range)
        with torch.no_grad(), _outside_autocast(images.device):
            pixels = self._prepare(images, grid, input_range)
            try:
                feature_map, summary = _as_pair(self.network(pixels))
            except AssertionError as error:  # how timm refuses a size
                size = "×".join(map(str, pixels.shape[-2:]))
                raise InputError(f"{self._name} cannot take images of {size} pixels: {error}") from error
            if feature_map.shape[:2] != (len(images), self.embed_dim):
                raise InputError(
                    f"{self._name} gave a map of shape {tuple(feature_map.shape)} for {len(images)} images; "
                    f"expected ({len(images)}, {self.embed_dim}, h, w). Correct its spec or its output."
                )
            return TeacherFeatures(_resize(feature_map, grid), summary)

    def extra_repr(self) -> str:
        """The line that `print` shows."""
        return f"{self.spec.name!r}, embed_dim={self.embed_dim}, patch_size={self.spec.patch_size}"

    @property
    def _name(self) -> str:
        return f"teacher {self.spec.name!r}"

    def _prepare(self, images: Tensor, grid: tuple[int, int], input_range: InputRange) -> Tensor:
        """Resize, then normalise: both are linear, and the smaller image is normalised faster."""
        pixels = images.to(torch.promote_types(self.dtype, torch.float32))
        if self._resizes:
            patch = self.spec.patch_size
            pixels = _resize(pixels, (grid[0] * patch, grid[1] * patch))
        mean, std = _as_mean_and_std(input_range)
        scale = [given / own for given, own in zip(std, self.spec.std, strict=True)]
        shift = [(given - own) / s for given, own, s in zip(mean, self.spec.mean, self.spec.std, strict=True)]
        if scale != [1.0] * 3 or shift != [0.0] * 3:
            pixels = torch.addcmul(_per_channel(shift, pixels), pixels, _per_channel(scale, pixels))
        return pixels.to(self.dtype)

    def _check(self, images: Tensor, grid: tuple[int, int], input_range: InputRange) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise InputError(f"{self._name} got images of shape {tuple(images.shape)}; expected (N, 3, H, W), RGB.")
        if len(grid) != 2 or not all(isinstance(cells, int) and cells > 0 for cells in grid):
            raise InputError(f"{self._name} got grid={grid!r}; expected (height, width) in cells, each at least 1.")
        check_input_range(input_range)
        if (images.dtype == torch.uint8) != (input_range == "uint8") or not (
            images.dtype == torch.uint8 or images.is_floating_point()
        ):
            raise InputError(
                f"{self._name} got images of {images.dtype} with input_range={input_range!r}; {_RANGES}. "
                "Floating-point images in [0, 255] are ((0, 0, 0), (1/255, 1/255, 1/255))."
            )
        if self.device not in (None, images.device):
            raise InputError(
                f"{self._name} is on {self.device}, the images are on {images.device}. "
                "Move it: teacher.to(images.device)."
            )


def check_input_range(input_range: object) -> None:
    """Raise an InputError unless `Teacher.forward` knows what images of this range hold."""
    if isinstance(input_range, str):
        if input_range not in get_args(NamedRange):
            raise InputError(f"input_range={input_range!r} is not known; {_RANGES}.")
    elif not _is_mean_and_std(input_range):
        raise InputError(f"input_range={input_range!r} is no pair of mean and std > 0 per channel; {_RANGES}.")


_RANGES = 'expected "unit" or "imagenet" (floating point), "uint8" (torch.uint8), or a pair (mean, std) per channel'


def _describe(module: nn.Module, dtype: torch.dtype) -> TeacherSpec:
    """Run a module once to see what map it gives."""
    name = type(module).__name__
    device = next((t.device for t in _tensors(module)), torch.device("cpu"))
    try:
        with torch.no_grad(), _outside_autocast(device):
            output = module(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE, dtype=dtype, device=device))
    except Exception as error:
        raise InputError(
            f"module {name} could not be run on an image of shape (1, 3, {_PROBE_SIZE}, {_PROBE_SIZE}): {error}. "
            'If it needs another size, give spec=TeacherSpec(backend="module", patch_size=..., embed_dim=..., ...).'
        ) from error
    feature_map, _ = _as_pair(output)
    return TeacherSpec(
        name=name,
        family="module",
        backend="module",
        model_id=f"{type(module).__module__}.{type(module).__qualname__}",
        patch_size=max(1, _PROBE_SIZE // feature_map.shape[-2]),
        embed_dim=feature_map.shape[1],
        params=sum(parameter.numel() for parameter in module.parameters()),
    )


def _as_pair(output: object) -> tuple[Tensor, Tensor | None]:
    feature_map, summary = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
    if not isinstance(feature_map, Tensor) or feature_map.ndim != 4 or 0 in feature_map.shape:
        given = tuple(feature_map.shape) if isinstance(feature_map, Tensor) else type(feature_map).__name__
        raise InputError(f"a teacher's network must return a map (N, C, h, w), or it and a summary; it gave {given}.")
    return feature_map, summary


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring images or maps (N, C, H, W) to a size: untouched, averaged over whole blocks, or antialiased bilinear."""
    (height, width), (new_height, new_width) = images.shape[-2:], size
    if (height, width) == (new_height, new_width):
        return images
    if height % new_height == 0 and width % new_width == 0:
        return F.avg_pool2d(images, (height // new_height, width // new_width))
    precise = images.to(torch.promote_types(images.dtype, torch.float32))
    return F.interpolate(precise, size=(new_height, new_width), mode="bilinear", antialias=True).to(images.dtype)


def _as_mean_and_std(input_range: InputRange) -> tuple[Rgb, Rgb]:
    """The (mean, std) with which images in [0, 1] would have been normalised to what the caller holds."""
    if input_range == "unit":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if input_range == "uint8":
        return (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
    if input_range == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = input_range
    return mean, std


def _is_mean_and_std(pair: object) -> bool:
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        return False
    numbers = all(
        isinstance(part, tuple | list) and len(part) == 3 and all(isinstance(v, int | float) for v in part)
        for part in pair
    )
    return numbers and all(v > 0 for v in pair[1])


def _per_channel(values: list[float], like: Tensor) -> Tensor:
    """(3, 1, 1), filled on the device: a copy from the host would make it wait."""
    return torch.stack([like.new_full((1, 1), value) for value in values])


def _outside_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())
