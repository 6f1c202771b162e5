"""trained: which parameters of modules are trained."""

from __future__ import annotations

from torch import nn


def trained(*modules: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of modules that require a gradient, each once, as they are now: sharding replaces them.

    For use in every step: `Module.parameters()` also makes their names, which takes four times as long.
    """
    found: dict[int, nn.Parameter] = {}
    seen: set[int] = set()
    waiting: list[nn.Module | None] = list(reversed(modules))
    while waiting:
        module = waiting.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        for parameter in module._parameters.values():
            if parameter is not None and parameter.requires_grad:
                found[id(parameter)] = parameter
        if children := module._modules:  # most have none, and reversing nothing takes time too
            waiting.extend(reversed(children.values()))
    return list(found.values())
