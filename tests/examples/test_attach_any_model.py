import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "attach_any_model.py"


def test_a_torchvision_classifier_learns_beside_a_teacher_in_at_most_sixty_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    figures = runpy.run_path(str(EXAMPLE))["main"](epochs=2, train_images=48)
    assert 0 < figures["semantic_loss"] < 0.9  # about 1 for an unrelated projection
    assert 0 < figures["share"] < 100
