"""Checks that a recipe can be run as it was launched: on this device, by this launcher."""

from __future__ import annotations

import os

import torch

from vfmdistill.errors import InputError

from .recipe import Recipe


def check_device(recipe: Recipe, device: torch.device, processes: int) -> None:
    """Check that a device computes what the recipe wants of it, in so many processes.

    Raises:
        InputError: it does not.
    """
    if recipe.precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 needs an accelerator, and this run is on the CPU; use bf16 or fp32")
    bf16_on_gpu = recipe.precision == "bf16" and device.type == "cuda"
    if bf16_on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"{torch.cuda.get_device_name(device)} does not compute in bf16; use fp16 or fp32")
    sharded_on_cpu = recipe.shard and processes > 1 and device.type == "cpu"
    if sharded_on_cpu and not hasattr(torch.cpu.Stream, "record_event"):
        raise InputError(f"torch {torch.__version__} shards on accelerators only, and this run is on the CPU")


def check_launcher(recipe: Recipe) -> None:
    """Check that the device is there and that `accelerate launch` was told nothing but processes and machines.

    What else it can be told, this program does itself and would do otherwise.

    Raises:
        InputError: one of it is not so; the message says what to give instead.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu or auto")
    problems = [
        f"{variable} is set: drop it, and shard with --shard"
        for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
        if os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
    ]
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", recipe.precision):
        problems.append(f"its precision is {precision}, the recipe's {recipe.precision}: give --precision instead")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no" and not recipe.compile:
        problems.append(f"its dynamo backend is {backend}, but the recipe does not compile: give --compile instead")
    if problems:
        raise InputError(f"accelerate launch: {'; '.join(problems)}.")
