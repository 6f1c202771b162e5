"""Put a teacher beside a torchvision classifier in a plain PyTorch loop: python examples/attach_any_model.py

The classifier learns to name the largest object in images that are drawn for it. Everything that concerns the teacher
stands in five lines; when the `with` block ends, nothing of it is left in the classifier.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

import vfmdistill
from detectors.data.coco import CocoDataset
from detectors.data.layout import locate_split
from detectors.data.toy import write_toy_dataset
from detectors.data.transforms import eval_transform


def main(epochs: int = 2, train_images: int = 160) -> dict[str, float]:
    """Train, print a line per epoch, and return the distiller's last figures."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        data = write_toy_dataset(Path(folder) / "toy", train_images=train_images, val_images=1, image_size=128)
        samples = CocoDataset(*locate_split(data, "train"), transform=eval_transform((128, 128)))
        images = torch.stack([samples[index][0] for index in range(len(samples))])
        labels = torch.tensor([largest_label(samples[index][1]) for index in range(len(samples))])
    loader = DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True, drop_last=True)
    student = resnet18(num_classes=len(samples.class_names))

    with vfmdistill.attach(student, teacher="efficientnet_lite0", tap="layer4") as distiller:
        optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], lr=1e-3)
        for epoch in range(epochs):
            student.train()
            for images, labels in loader:
                loss = F.cross_entropy(student(images), labels) + distiller.loss(images)
                loss.backward()
                distiller.observe()
                optimizer.step()
                optimizer.zero_grad()
            distiller.update()
            print(f"epoch {epoch}", *(f"{name} {value:.3f}" for name, value in distiller.metrics().items()))
    return distiller.metrics()


def largest_label(target: dict[str, torch.Tensor]) -> int:
    """Return the class of the object with the largest box (cxcywh)."""
    return int(target["labels"][target["boxes"][:, 2:].prod(dim=1).argmax()])


if __name__ == "__main__":
    main()
