"""A program: a transformation, parameters and gradients, written as Python so that one that fails can be pasted."""

import functools
import re
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.utils._cxx_pytree as pytree

import boxopt as bx
from tests import registry
from tests.registry import ENTRIES, SCHEDULES, Hyper

DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
BY_NAME = {str(entry): entry for entry in ENTRIES}


def entry(name, h):
    """The transformation of a line of the registry."""
    return BY_NAME[name].build(h)


def schedule(name, h):
    return SCHEDULES[name](h)


def leaf(shape, dtype="f64", seed=0, scale=1.0, layout="plain"):
    """A random tensor, and how it lies in memory."""
    generator = torch.Generator().manual_seed(seed)
    x = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(DTYPES[dtype])
    if layout == "transposed" and x.ndim >= 2:
        return x.mT.contiguous().mT
    if layout == "strided" and x.ndim >= 1:
        return torch.stack([x, x + 1], -1)[..., 0]
    if layout == "offset":
        return torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape)
    if layout == "expanded" and x.ndim >= 1 and x.shape[0] > 0:
        return x[:1].expand(x.shape)
    return x


constant = functools.cache(leaf)  # made once, before vmap, under which torch draws no random numbers


def number(value):
    return torch.as_tensor(value, dtype=torch.float64)


def all_of(params):
    return True


def third_steps(step: Any) -> Any:
    return step % 3 != 1


NAMES = {
    "bx": bx,
    "S": bx.sets,
    "R": bx.regularizers,
    "C": bx.contrib,
    "torch": torch,
    "entry": entry,
    "schedule": schedule,
    "leaf": leaf,
    "constant": constant,
    "third_steps": third_steps,
    "number": number,
    "all_of": all_of,
    "even_mask": registry.even_mask,
    "bias_labels": registry.bias_labels,
    "odd_steps": registry.odd_steps,
    "every_two_then_one": registry.every_two_then_one,
    "few_and_finite": registry.few_and_finite,
    "told": registry.told,
    "Layer": registry.Hyper,  # any NamedTuple would do
    "partial": partial,
}


@dataclass(frozen=True)
class Program:
    """What is run.

    Attributes:
        transformation: An expression of ``h``, a tuple of `tests.registry.Hyper`.
        params: An expression for the parameters.
        hypers: The numbers of ``h``.
        gradients: For each step its kind and its scale.
        lands: An expression of ``h`` for the set that the updates keep parameters in, or "".
        tolerance: The violation that the set allows, in units of the dtype's epsilon.
    """

    transformation: str
    params: str
    hypers: tuple[Hyper, ...] = (Hyper(),)
    gradients: tuple[tuple[str, float], ...] = (("slope", 1.0), ("noise", 1.0))
    lands: str = ""
    tolerance: float = 0.0

    def build(self, h):
        return self._make(h)

    @cached_property
    def _make(self):
        return eval(f"lambda h: {self.transformation}", dict(NAMES))

    def start(self):
        """The parameters, inside of the set."""
        params = eval(self.params, dict(NAMES))
        if not self.lands:
            return params
        constraint = self.set(self.hypers)
        constraint.check(params)
        return constraint.project(params)

    def set(self, h):
        return eval(self.lands, NAMES | {"h": h})

    @cached_property
    def blocks(self):
        """The names of what the program is made of."""
        text = f"{self.transformation} {self.params} {self.lands}"
        words = r"entry\('([^']+)'|([A-Za-z_.]+)(?=\()|'(bf16|f16|f32|expanded|strided|transposed)'"
        return frozenset(re.findall(words, text))

    def __str__(self):
        default = Program("", "")
        given = {name: getattr(self, name) for name in self.__dataclass_fields__}
        given = {name: value for name, value in given.items() if value != getattr(default, name)}
        return f"Program({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def gradient(self, step, params, seed=0):
        """The gradients of a step: pure, of the same dtypes as the parameters."""
        kind, scale = self.gradients[step]
        if kind == "storm":  # one member of an ensemble alone
            kind = "nan" if seed == 1 else "noise"
        leaves, structure = pytree.tree_flatten(params)
        made = enumerate(leaves, start=1000 * step + 10 * seed)
        return structure.unflatten([x if x is None else _gradient(kind, scale, x, number) for number, x in made])

    @property
    def tame(self):
        """Whether gradients and strengths are such that nothing overflows: many an entry divides by a strength.

        Nor is there a barrier in a box that is a point, where it is infinite.
        """
        strong = "entry(" in self.transformation and not all(1e-12 <= h.mu <= 1e12 for h in self.hypers)
        walled = "barrier" in self.transformation and any(h.lower == h.upper for h in self.hypers)
        return (
            not strong
            and not walled
            and all(kind not in ("nan", "inf") and 1e-4 <= size <= 100 for kind, size in self.gradients)
        )


def _gradient(kind, scale, x, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    if kind == "zero":
        return torch.zeros_like(x)
    if kind == "same":  # as of a sum: one number in memory
        return x.new_full((), scale).expand(x.shape)
    value = scale * (noise if kind != "slope" else 2 * x.double() + noise)
    if kind == "sparse":
        value = torch.where(noise > 0.5, value, 0.0)
    if kind in ("nan", "inf") and x.numel():
        value.view(-1)[0] = {"nan": torch.nan, "inf": -torch.inf}[kind]
    if kind == "turned" and x.ndim >= 2:  # lies otherwise than the parameter
        value = value.mT.contiguous().mT
    return value.to(x.dtype)
