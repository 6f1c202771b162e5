"""Training: recipe, assembly of its parts, and the loop."""

from .assemble import assemble
from .checkpoint import CheckpointError
from .command_line import parse_recipe
from .interrupt import Interrupted
from .recipe import Recipe, recipe_for
from .snapshot import load_checkpoint
from .trainer import Trainer

__all__ = [
    "CheckpointError",
    "Interrupted",
    "Recipe",
    "Trainer",
    "assemble",
    "load_checkpoint",
    "parse_recipe",
    "recipe_for",
]
