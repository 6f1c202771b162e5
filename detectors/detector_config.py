"""DetectorConfig: what a folder says about the detector whose weights it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from detectors.catalog import DetectorSpec, detector_spec
from detectors.detector import Detector
from vfmdistill.errors import DistillError, WeightsError

CONFIG = "config.json"
FORMAT: Literal["vfmdistill-detector"] = "vfmdistill-detector"
VERSION: Literal[1] = 1

Text = Annotated[str, StringConstraints(min_length=1)]


class DetectorConfig(BaseModel):
    """The contents of config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["vfmdistill-detector"] = FORMAT
    version: Literal[1] = VERSION
    model: Text = Field(description="name in detectors.list_models()")
    options: dict[str, Any] = Field(description="fields of the spec that differ from the model's row, and input_size")
    num_classes: int = Field(ge=1)
    class_names: list[Text] | None = Field(None, description="in the order of the logits; null if unknown")
    category_ids: list[int] | None = Field(None, description="the data set's id of each class; null if unknown")
    license: Text | None = Field(None, description="of the weights; null if unknown")
    deployed: bool = Field(False, description="re-parameterised, for inference only")
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="of model.safetensors"
    )

    @model_validator(mode="after")
    def _one_per_class(self) -> DetectorConfig:
        for field in ("class_names", "category_ids"):
            values = getattr(self, field)
            if values is None:
                continue
            if len(values) != self.num_classes:
                raise ValueError(f"{field} holds {len(values)} values for {self.num_classes} classes")
            if len(set(values)) != len(values):
                raise ValueError(f"{field} holds the same value twice")
        return self

    @classmethod
    def of(cls, model: Detector, *, license: str | None, sha256: str) -> DetectorConfig:
        """Describe a detector.

        Raises:
            ValidationError: what the detector says about itself does not fit together.
        """
        return cls(
            model=model.spec.name,
            options={"input_size": list(model.spec.input_size), **model.spec.changes()},
            num_classes=model.num_classes,
            class_names=None if model.class_names is None else list(model.class_names),
            category_ids=None if model.category_ids is None else [int(key) for key in model.category_ids],
            license=license,
            deployed=model.deployed,
            sha256=sha256,
        )

    def spec(self) -> DetectorSpec:
        """Return the settings of the detector.

        Raises:
            UnknownNameError: this version knows no such model or option.
            InputError: an option's value does not fit.
        """
        return detector_spec(self.model).replace(**self.options)


def read_config(directory: Path) -> DetectorConfig:
    """Read and check the config.json of a folder that `save_pretrained` wrote.

    Raises:
        WeightsError: there is none, it is damaged, of another format or version, or names a model or an option that is
            unknown here.
    """
    content = read_json(directory / CONFIG)
    if content.get("format") != FORMAT:
        advice = "expected a folder that detectors.save_pretrained wrote"
        if "model_type" in content:
            advice += "; this one is from transformers: build the detector and give the folder to "
            advice += "detectors.load_reference_checkpoint"
        raise WeightsError(f"{directory / CONFIG} has the format {content.get('format')!r}, not {FORMAT!r}: {advice}.")
    if content.get("version") != VERSION:
        raise WeightsError(
            f"{directory / CONFIG} has the version {content.get('version')!r} of the format, and this vfmdistill reads "
            f"version {VERSION}: read it with the vfmdistill that wrote it, or a newer one."
        )
    try:
        config = DetectorConfig.model_validate(content)
        config.spec()
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise WeightsError(f"{directory / CONFIG} is damaged: {reasons}") from None
    except DistillError as error:
        raise WeightsError(f"{directory / CONFIG}: {error}") from error
    return config


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: there is no such file, or it holds something else.
    """
    if not file.is_file():
        raise WeightsError(f"there is no file {file}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: bad JSON, bad UTF-8
        raise WeightsError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is damaged: it holds a {type(content).__name__}, expected an object.")
    return content
