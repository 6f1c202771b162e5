"""The version of the package, alone in a file so that building does not import torch."""

__version__ = "0.1.0"
