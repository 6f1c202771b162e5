"""Which modules of a student can be tapped, and which of them is taken."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import timm
import torch
import torchvision
from support.students import IMAGES, Classifier, hooks, same_state
from torch import Tensor, nn

from vfmdistill import CaptureError, InputError, Tap
from vfmdistill.inspection import Candidate, Inspection, inspect


@pytest.fixture
def _no_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students as if nobody had written an adapter for them."""
    monkeypatch.setattr("vfmdistill.inspection.find_adapter", lambda student: None)


def taken(inspection: Inspection) -> str:
    (candidate,) = inspection.chosen
    return candidate.path


def listed(inspection: Inspection) -> dict[str, Candidate]:
    return {candidate.path: candidate for candidate in inspection.candidates}


def down(width_in: int, width_out: int, stride: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width_out, stride, stride), nn.BatchNorm2d(width_out), nn.ReLU())


models = torchvision.models


@pytest.mark.usefixtures("_no_adapters")
@pytest.mark.parametrize(
    ("make", "path", "shape", "layout"),
    [
        (models.resnet18, "layer4", (1, 512, 2, 2), "NCHW"),
        (models.convnext_tiny, "features.7", (1, 768, 2, 2), "NCHW"),
        (models.mobilenet_v3_small, "features.12", (1, 576, 2, 2), "NCHW"),  # `features` gives the same, from the image
        (models.densenet121, "features.denseblock4", (1, 1024, 2, 2), "NCHW"),  # a norm comes later, but mixes nothing
        (models.swin_t, "features.7", (1, 2, 2, 768), "NHWC"),
        (
            lambda: models.VisionTransformer(64, 16, 6, 2, 64, 256, num_classes=9),
            "encoder.layers.encoder_layer_5",  # `encoder.layers` and `encoder` hold more than 4/5 of the parameters
            (1, 17, 64),
            "tokens",
        ),
        (lambda: timm.create_model("edgenext_xx_small"), "stages.3", (1, 168, 2, 2), "NCHW"),  # attends over channels
    ],
)
def test_the_last_stage_of_well_known_networks(
    make: Callable[[], nn.Module], path: str, shape: tuple[int, ...], layout: str
) -> None:
    inspection = inspect(make(), 64)
    assert taken(inspection) == path
    (candidate,) = inspection.chosen
    assert (candidate.shape, candidate.layout) == (shape, layout)
    assert candidate.stride == (16 if layout == "tokens" else 32)
    assert candidate.note == ("1 more token" if layout == "tokens" else "")
    assert inspection.reason.startswith("the deepest map of stride 16 to 32; of ")


@pytest.mark.usefixtures("_no_adapters")
def test_a_detector_with_a_pyramid() -> None:
    student = models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, min_size=128, max_size=128)
    inspection = inspect(student, 128)
    assert taken(inspection) == "backbone.fpn.layer_blocks.2"
    assert listed(inspection)["backbone.body.layer4"].shape == (1, 2048, 4, 4)
    assert listed(inspection)["backbone.fpn.extra_blocks"].note == "in [0][2]; passed on from another module"
    assert "head.regression_head.conv.0" not in listed(inspection)  # of its maps the last is a single cell


def test_what_is_told_of_a_candidate() -> None:
    inspection = inspect(Classifier(), (64, 96))
    assert [candidate.path for candidate in inspection.candidates] == [
        "stem.0",
        "stem.1",
        "stem.2",
        "stem",
        "body.0",
        "body.1",
        "body.2",
        "body",
        "relu",
    ]
    assert inspection.chosen == (Candidate("body", "Sequential", (1, 12, 4, 6), 16.0, "NCHW", 1572),)
    assert listed(inspection)["relu"] == Candidate("relu", "ReLU", (1, 12, 4, 6), 16.0, "NCHW", 0, "nothing to train")
    assert inspection.reason == (
        "the deepest map of stride 16 to 32; of 4 modules with such a map the last to finish that has trainable "
        "weights and covers no more than a stage."
    )


def test_the_student_is_left_as_it_was() -> None:
    student = Classifier()
    student.stem[1].eval()
    twin = copy.deepcopy(student)
    random_state = torch.get_rng_state()
    inspect(student)
    inspect(student, probe=IMAGES)
    with pytest.raises(InputError):
        inspect(student, probe=torch.zeros(1, 5, 64, 64))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same_state(student, twin)
    assert hooks(student) == 0


def test_printed_and_as_json() -> None:
    inspection = inspect(Classifier(), 64)
    text = str(inspection).splitlines()
    assert text[1].split() == ["path", "type", "output", "stride", "layout", "parameters", "note"]
    rows = [line.split() for line in text[3:-2]]
    assert rows[-1] == ["→", "body", "Sequential", "1", "×", "12", "×", "4", "×", "4", "16", "NCHW", "1,572"]
    assert [row[0] for row in rows[:-1]] == ["stem"]  # not its layers, which are modules of what is listed
    assert text[-1] == f"attach takes 'body': {inspection.reason}"
    again = json.loads(json.dumps(inspection.to_dict()))
    assert again["chosen"] == ["body"]
    assert again["input_size"] == [64, 64]
    assert [row["path"] for row in again["candidates"]] == list(listed(inspection))
    assert again["candidates"][-2] == {
        "path": "body",
        "type": "Sequential",
        "shape": [1, 12, 4, 4],
        "stride": 16.0,
        "layout": "NCHW",
        "params": 1572,
        "note": "",
    }


class Net(nn.Module):
    """Calls its modules as a function says; most of its parameters are in a head for maps of 8 channels."""

    def __init__(self, run: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.head = nn.Linear(8, 999)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.run(self, images).mean((2, 3)))
        return logits


def test_a_module_that_is_called_twice_counts_by_its_last_call() -> None:
    student = Net(lambda net, x: net.shared(net.shared(net.stem(x))), stem=down(3, 8, 16), shared=nn.Conv2d(8, 8, 1))
    student.again = student.shared
    inspection = inspect(student, 64)
    assert inspection.chosen == (
        Candidate("shared", "Conv2d", (1, 8, 4, 4), 16.0, "NCHW", 72, "called 2 times, the last counts"),
    )
    two_sizes = Net(
        lambda net, x: net.shared(net.stem(x)).mean() + net.shared(net.stem(x)[..., ::4, ::4]),
        stem=down(3, 8, 16),
        shared=nn.Conv2d(8, 8, 1),
    )
    assert taken(inspect(two_sizes, 64)) == "stem"  # what the other one gives last is a single cell


def test_a_module_that_is_never_called_is_no_candidate() -> None:
    assert "unused" not in listed(inspect(Classifier(), 64))


class Pyramid(nn.Module):
    """Gives maps of stride 8 and 32 in a container."""

    def __init__(self, contain: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.fine, self.coarse = down(3, 8, 8), down(8, 8)
        self.contain = contain

    def forward(self, images: Tensor) -> Any:
        fine = self.fine(images)
        return self.contain(fine, self.coarse(fine))


@pytest.mark.parametrize(
    ("contain", "take", "place"),
    [
        (lambda fine, coarse: {"p3": fine, "p5": coarse}, lambda out: out["p5"], "['p5']"),
        (lambda fine, coarse: [fine, coarse], lambda out: out[1], "[1]"),
        (lambda fine, coarse: ({"maps": [fine, coarse]}, None), lambda out: out[0]["maps"][1], "[0]['maps'][1]"),
    ],
)
def test_maps_in_containers(contain: Any, take: Callable[[Any], Tensor], place: str) -> None:
    student = Net(lambda net, x: take(net.body(x)), body=Pyramid(contain))
    inspection = inspect(student, 64)
    assert taken(inspection) == "body.coarse"
    whole = listed(inspection)["body"]
    assert (whole.shape, whole.stride, whole.note) == ((1, 8, 2, 2), 32.0, f"in {place}")


def test_a_student_that_takes_one_size_only() -> None:
    def run(net: nn.Module, x: Tensor) -> Tensor:
        if x.shape[-2:] != (64, 64):
            raise ValueError("64 × 64 only")
        return net.get_submodule("body")(x)  # type: ignore[no-any-return]

    student = Net(run, body=nn.Sequential(down(3, 8), down(8, 8)))
    with pytest.raises(InputError, match=r"shape \(1, 3, 224, 224\).*ValueError: 64 × 64 only.*input_size=.*probe="):
        inspect(student)
    assert taken(inspect(student, 64)) == "body.1"
    assert taken(inspect(student, probe=torch.rand(2, 3, 64, 64))) == "body.1"


def test_queries_that_are_no_map() -> None:
    student = Net(
        lambda net, x: net.decoder(net.queries.weight[None] * net.body(x).mean()).mT[..., None],
        body=down(3, 8, 16),
        queries=nn.Embedding(16, 8),
        decoder=nn.Linear(8, 8),
    )
    inspection = inspect(student, 64)  # 16 queries are as many as a map of stride 16 has cells
    assert listed(inspection)["decoder"].note == "does not follow the image size"
    assert taken(inspection) == "body"


def test_predictions_that_are_returned_as_they_are() -> None:
    student = nn.Sequential(down(3, 8), down(8, 8), nn.Conv2d(8, 30, 1))
    inspection = inspect(student, 64)
    assert listed(inspection)["2"].note == "predictions, by what the student returns"
    assert taken(inspection) == "1"
    backbone = nn.Sequential(down(3, 8), down(8, 8))
    assert taken(inspect(backbone, 64)) == "1"  # what a backbone returns is no prediction
    assert taken(inspect(nn.Conv2d(3, 4, 16, 16), 64)) == ""  # and better than none


def test_what_has_parameters_comes_first() -> None:
    norm = nn.Sequential(down(3, 8, 2), nn.AvgPool2d(8), nn.BatchNorm2d(8), nn.ReLU())
    assert taken(inspect(norm, 64)) == "2"
    pooled = nn.Sequential(down(3, 8, 2), nn.AvgPool2d(8), nn.ReLU())
    inspection = inspect(nn.Sequential(pooled, nn.Flatten(), nn.Linear(128, 400)), 64)
    assert taken(inspection) == "0"
    assert "though it holds finer maps or most of the student" in inspection.reason
    bare = Net(lambda net, x: net.pool(net.stem(x)), stem=down(3, 8, 2), pool=nn.AvgPool2d(8))
    inspection = inspect(bare, 64)
    assert taken(inspection) == "pool"
    assert "no trainable parameters (for a fixed λ only)" in inspection.reason


def test_frozen_modules_come_last() -> None:
    student = Net(lambda net, x: net.late(net.early(x)), early=down(3, 8, 16), late=nn.Conv2d(8, 8, 1))
    assert taken(inspect(student, 64)) == "late"
    student.late.requires_grad_(False)
    assert taken(inspect(student, 64)) == "early"


@pytest.mark.parametrize(
    ("student", "size", "reason"),
    [
        (
            nn.Sequential(down(3, 8), nn.Flatten(), nn.LazyLinear(2)),
            32,
            r"for images of 32 × 32; the deepest has 8 × 8",
        ),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), 64, "nor any other map. Pass an adapter"),
        (nn.Sequential(down(3, 8, 64)), 128, "the deepest has 2 × 2 cells"),
        (nn.Sequential(down(3, 8, 64)), 64, "nor any other map"),  # one cell is none
    ],
)
def test_no_module_fits(student: nn.Module, size: int, reason: str) -> None:
    student.eval()(torch.zeros(1, 3, size, size))
    inspection = inspect(student, size)
    assert inspection.chosen == ()
    assert reason in inspection.reason
    assert str(inspection).endswith(f"attach takes no tap: {inspection.reason}")


@pytest.mark.parametrize("size", [(250, 200), (224, 320), (97, 130), (64, 64)])
@pytest.mark.parametrize("padding", [0, 1])
def test_sizes_that_strides_do_not_divide(size: tuple[int, int], padding: int) -> None:
    layers = [nn.Conv2d(3 if index == 0 else 8, 8, 3, 2, padding) for index in range(5)]
    student = Net(lambda net, x: net.body(x), body=nn.Sequential(*layers, nn.ReLU()))
    inspection = inspect(student, size)
    coarse = size[0] < 160 and padding == 0  # a border lost is then no different from a coarser stride
    assert taken(inspection) == ("body.3" if coarse else "body.4")


class SaysItself(Classifier):
    """A student that is an adapter, and names two taps."""

    unreadable = False

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        return [Tap("stem", self.stem), Tap("body.0", self.body[0])]

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        if self.unreadable:
            raise CaptureError("what is this?")
        return output  # type: ignore[no-any-return]


def test_an_adapter_decides() -> None:
    student = SaysItself()
    inspection = inspect(student, 64)
    assert [candidate.path for candidate in inspection.chosen] == ["stem", "body.0"]
    assert inspection.reason == "the student names them."
    assert str(inspection).endswith("attach takes 'stem', 'body.0': the student names them.")
    assert str(inspection).count("→") == 2
    student.unreadable = True
    assert inspect(student, 64).reason == "the student names 'stem' and cannot read it: what is this?"


def test_an_adapter_whose_taps_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(SaysItself):
        def taps(self, student: nn.Module) -> Sequence[Tap]:
            return [Tap("unused", student.get_submodule("unused"))] if student.training else []

    monkeypatch.setattr("vfmdistill.inspection.find_adapter", lambda student: Wrong())
    inspection = inspect(Classifier(), 64)
    assert inspection.chosen == ()
    assert inspection.reason == "the adapter Wrong names 'unused', which does not run with the student."
    assert inspect(Classifier().eval(), 64).reason == "the adapter Wrong names none."


def test_a_student_inside_a_wrapper() -> None:
    assert taken(inspect(torch.compile(Classifier()), 64)) == "body"
    with pytest.raises(InputError, match="use DistributedDataParallel"):
        inspect(nn.DataParallel(Classifier()), 64)


@pytest.mark.parametrize("size", [0, (64,), (64, 64, 3), "64", True, (64, 6.4)])
def test_a_size_that_is_none(size: Any) -> None:
    with pytest.raises(InputError, match="expected whole numbers of pixels"):
        inspect(Classifier(), size)


@pytest.mark.parametrize("probe", [[torch.zeros(3, 64, 64)], torch.zeros(3, 64, 64)])
def test_a_probe_that_is_no_batch(probe: Any) -> None:
    with pytest.raises(InputError, match=r"probe: .*; expected a batch \(N, 3, H, W\)"):
        inspect(Classifier(), probe=probe)


def test_a_student_without_parameters_needs_a_probe() -> None:
    with pytest.raises(InputError, match="probe="):
        inspect(nn.AvgPool2d(16))
    assert taken(inspect(nn.AvgPool2d(16), probe=torch.zeros(1, 3, 64, 64))) == ""


def test_sparse_tensors_are_no_maps_and_no_obstacle() -> None:
    class Inner(nn.Module):
        def forward(self, graph: Tensor) -> Tensor:
            return 2 * graph

    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("graph", torch.eye(4).to_sparse())
            self.body = nn.Conv2d(3, 8, 16, 16)
            self.inner = Inner()

        def forward(self, images: Tensor) -> Tensor:
            graph: Tensor = self.inner(self.graph)
            return self.body(images).mean() + graph.to_dense().sum()

    assert [candidate.path for candidate in inspect(Sparse(), 64).chosen] == ["body"]
