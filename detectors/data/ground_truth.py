"""The annotations of a split for the evaluator, in the frame of the upright pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from detectors.data.content import Content
from detectors.data.images import Header, read_headers
from detectors.data.orientation import boxes_refer_to_stored, turn_boxes, upright_size
from vfmdistill.errors import InputError


def upright_content(content: Content) -> dict[str, Any]:
    """Return annotations that are in order as a COCO file holds them, with boxes and sizes of the upright pictures.

    Turned annotations lose every other outline than their box.

    Raises:
        InputError: the size of an image cannot be read.
    """
    turned: dict[int, Header] = {}
    images = []
    headers = read_headers([content.images_dir / image["file_name"] for image in content.images])
    for image, header in zip(content.images, headers, strict=True):
        if isinstance(header, str):
            raise InputError(f"image {content.images_dir / image['file_name']} cannot be read: {header}")
        annotated = (image["width"], image["height"])
        if header.orientation != 1 and not content.upright and boxes_refer_to_stored(*header, annotated):
            turned[image["id"]] = header
            width, height = upright_size(*header)
            image = image | {"width": width, "height": height}
        images.append(image)
    annotations = []
    for annotation in content.annotations:
        if (turn := turned.get(annotation["image_id"])) is not None:
            left, top, width, height = annotation["bbox"]
            corners = turn_boxes(np.array([[left, top, left + width, top + height]], dtype=np.float64), *turn)[0]
            bbox = [*corners[:2].tolist(), *(corners[2:] - corners[:2]).tolist()]
            annotation = {key: annotation[key] for key in annotation if key not in ("segmentation", "keypoints")}
            annotation |= {"bbox": bbox}
        annotations.append(annotation)
    return {**content.other_fields, "images": images, "annotations": annotations, "categories": content.categories}
