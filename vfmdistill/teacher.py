"""Teacher: a frozen vision foundation model that maps images to a dense feature map on any grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vfmdistill.errors import InputError
from vfmdistill.feature_cache import FeatureCache
from vfmdistill.input_range import InputRange, check_holds, check_input_range, normalise
from vfmdistill.resizing import resize
from vfmdistill.teachers import module_backend
from vfmdistill.teachers.catalog import TeacherSpec, loader_for, teacher_spec
from vfmdistill.teachers.compiling import compile_network
from vfmdistill.teachers.identity import identify
from vfmdistill.teachers.precision import destination, dtype_for, outside_autocast
from vfmdistill.teachers.readout import Dense, Merge, Readout
from vfmdistill.teachers.tensor_watch import TensorWatch

__all__ = ["InputRange", "Teacher", "TeacherFeatures", "check_input_range"]


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
        source: a name of the catalogue (`list_teachers`), ``timm:MODEL``, ``open_clip:MODEL/TAG``, ``hf:OWNER/NAME``,
            or a module that maps (N, 3, H, W) to (N, C, h, w), or to a pair of that map and a summary.
        pretrained: take the published weights; False gives random ones. Without meaning for a module.
        weights: a local file to take instead, safetensors or PyTorch, in the naming of timm, transformers, open_clip
            or the authors.
        dtype: of the network. None is what suits the device, decided again wherever the teacher is moved: bfloat16 on
            CUDA devices of compute capability 8 and more, float16 on those of 7, else float32; to stay in float32, say
            so here. For a module None is its own. Images are prepared in float32 at least.
        compile: compile the network with `torch.compile` at its first forward, a transformer block by block.
        spec: what a given module expects of its images. Without it, the module gets RGB in [0, 1], neither normalised
            nor resized, and is run once on a black 224 × 224 image to see the width of its map.
        dense: which features make the map, ``"tokens"`` or ``"value"`` (see `Readout`); None is what suits the teacher.
        blocks: whose tokens make the map, counted from 1, such as ``[9, 12]``; None is the last.
        merge: whether the maps of several blocks are joined along the channels, ``"concat"``, or averaged, ``"mean"``.
        cache: a folder that keeps the features of this teacher for images that come again, pixel by pixel; or a
            `FeatureCache`, whose documentation says when this pays.

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
        dense: Dense | None = None,
        blocks: Sequence[int] | None = None,
        merge: Merge = "concat",
        cache: str | Path | FeatureCache | None = None,
    ) -> None:
        super().__init__()
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InputError(f"a teacher cannot run in {dtype!r}; expected a floating-point torch.dtype, or None.")
        if cache is not None and not isinstance(cache, str | Path | FeatureCache):
            raise InputError(f"cache={cache!r} is no cache; expected a folder, a FeatureCache or None.")
        readout = Readout("tokens" if dense is None else dense, cast("tuple[int, ...] | None", blocks), merge)
        if isinstance(source, nn.Module):
            module_backend.check_options(weights, readout)
            self.network = source
        else:
            if spec is not None:
                raise InputError(f"spec= goes with a module; teacher {source!r} has its own. Drop spec=.")
            spec = teacher_spec(source)
            if dense is None and blocks is None:
                readout = Readout(spec.dense, merge=merge)
            path = None if weights is None else Path(weights)
            self.network = loader_for(spec)(spec, pretrained, path, readout)
            spec = spec.model_copy(update={"embed_dim": readout.embed_dim(spec.embed_dim), "dense": readout.dense})
        self._chooses_dtype = dtype is None and not isinstance(source, nn.Module)
        if self._chooses_dtype:
            dtype = dtype_for(self.device or torch.device("cpu"))
        self.network.to(dtype=dtype)
        self.eval().requires_grad_(False)
        self._resizes = spec is not None
        self._readout = readout
        self.spec: TeacherSpec = spec or module_backend.describe(self.network, self.dtype, self.device)
        self.cache = FeatureCache(cache) if isinstance(cache, str | Path) else cache
        self._opened: tuple[FeatureCache, TensorWatch] | None = None
        if compile:
            compile_network(self.network)

    @property
    def embed_dim(self) -> int:
        """Channels of the map."""
        return self.spec.embed_dim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network runs in: that of its first floating-point parameter or buffer."""
        return next((t.dtype for t in self._tensors() if t.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device | None:
        """Where the network is, or None if it has neither parameters nor buffers."""
        return next((t.device for t in self._tensors()), None)

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
                teacher, the network cannot take images of that size or gives no map of them, or the cache is another
                teacher's or damaged.
            DistillError: the cache cannot be read or written.
        """
        self._check(images, grid, input_range)
        with torch.no_grad(), outside_autocast(images.device):
            pixels = self._prepare(images, grid, input_range)
            if self.cache is None:
                return self._features(pixels, grid)
            self._open(self.cache)
            return TeacherFeatures(*self.cache.features(pixels, grid, lambda some: self._features(some, grid)))

    def extra_repr(self) -> str:
        """The line that `print` shows."""
        return f"{self.spec.name!r}, embed_dim={self.embed_dim}, patch_size={self.spec.patch_size}"

    @property
    def _name(self) -> str:
        return f"teacher {self.spec.name!r}"

    def _features(self, pixels: Tensor, grid: tuple[int, int]) -> TeacherFeatures:
        try:
            feature_map, summary = module_backend.as_pair(self.network(pixels))
        except AssertionError as error:  # how timm refuses a size
            size = "×".join(map(str, pixels.shape[-2:]))
            raise InputError(f"{self._name} cannot take images of {size} pixels: {error}") from error
        if feature_map.shape[:2] != (len(pixels), self.embed_dim):
            raise InputError(
                f"{self._name} gave a map of shape {tuple(feature_map.shape)} for {len(pixels)} images; "
                f"expected ({len(pixels)}, {self.embed_dim}, h, w). Correct its spec or its output."
            )
        return TeacherFeatures(resize(feature_map, grid), summary)

    def _prepare(self, images: Tensor, grid: tuple[int, int], input_range: InputRange) -> Tensor:
        """Resize, then normalise: both are linear, and the smaller image is normalised faster."""
        pixels = images.to(torch.promote_types(self.dtype, torch.float32))
        if self._resizes:
            patch = self.spec.patch_size
            pixels = resize(pixels, (grid[0] * patch, grid[1] * patch))
        return normalise(pixels, input_range, self.spec.mean, self.spec.std).to(self.dtype)

    def _check(self, images: Tensor, grid: tuple[int, int], input_range: InputRange) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise InputError(f"{self._name} got images of shape {tuple(images.shape)}; expected (N, 3, H, W), RGB.")
        if len(grid) != 2 or not all(isinstance(cells, int) and cells > 0 for cells in grid):
            raise InputError(f"{self._name} got grid={grid!r}; expected (height, width) in cells, each at least 1.")
        check_holds(images, input_range, self._name)
        if self.device not in (None, images.device):
            raise InputError(
                f"{self._name} is on {self.device}, the images are on {images.device}. "
                "Move it: teacher.to(images.device)."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Teacher:
        """Move, first in the precision that suits the place, unless the caller or the constructor has chosen one."""
        if self._chooses_dtype:
            device, dtype = destination(fn, self.device or torch.device("cpu"))
            self._chooses_dtype = dtype is None
            if dtype is None:
                self.network.to(dtype_for(device))
        self._opened = None
        nn.Module._apply(self, fn, recurse)
        return self

    def _open(self, cache: FeatureCache) -> None:
        """Tell the cache whose features it holds, again whenever the network may have become another."""
        if self._opened is None or self._opened[0] is not cache or not self._opened[1].holds(self.network):
            watch = TensorWatch(self.network)
            cache.open(identify(self.network, self.spec, self._readout, self.dtype))
            self._opened = cache, watch

    def _tensors(self) -> Iterator[Tensor]:
        return itertools.chain(self.network.parameters(), self.network.buffers())
