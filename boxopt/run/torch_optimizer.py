"""A transformation as one of torch's optimizers, for training loops that want one."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, accepted, apply_updates
from boxopt.core.types import ParameterSet
from boxopt.run.cohort import Cohort, FusedCohort, packed_parameters, unscaled
from boxopt.run.compile import compile
from boxopt.run.places import Places
from boxopt.wrap.hyperparams import as_tensor, is_numeric


class TorchOptimizer(torch.optim.Optimizer):
    """A transformation as a ``torch.optim.Optimizer``: for Lightning, Hugging Face, learning-rate schedulers, ….

    ``step`` gives each group's parameters and gradients to the transformation, as a dict from name to tensor, and adds
    what comes back to the parameters in place. Hyperparameters stand in ``param_groups`` and are read on each step. For
    that, give a function of them that makes the transformation. Its argument ``learning_rate`` is the group's ``lr``,
    by which torch's schedulers know it. A transformation that is made already works too; it has no ``lr`` to schedule.

    As in torch, a parameter without a gradient stays as it is, and so does its own state; counters are shared by the
    parameters of a group that had their first gradient in the same step. Transformations that look at all parameters (a
    global norm, a set across several) see those of one group.

    ``state`` holds a flat dict of tensors for each parameter, and ``state_dict`` likewise. ``load_state_dict`` gives
    back every bit, where torch's own optimizers cast to the parameters' dtype, and raises if the state is another
    transformation's.

    Args:
        params: As for any optimizer: parameters, pairs ``named_parameters()`` of names and parameters, or dicts, one a
            group. The names are the paths that `sets.ByPath` and masks see; without names they are "0", "1", ….
        transformation: A transformation, or a function of hyperparameters that makes one: ``bx.adam``, or ``lambda lr:
            bx.projected(bx.adam(lr), bx.Box(-1, 1))``. With ``fused=True`` the function is given tensors.
        within: A set to project each group's parameters onto after the update, as in `apply_updates`: they land on the
            bounds exactly, and from outside come in with the first step. None for none.
        fused: Lay the parameters of a group side by side in one buffer, of which they become views, and compile the
            step, which writes over them and the state. The first step takes seconds to compile.
        **hyperparameters: The groups' defaults, ``lr=1e-3`` for one: numbers, tensors, tuples of them, or anything that
            the function takes.

    Raises:
        TypeError: A hyperparameter that the function does not take, or one that it lacks.
        ValueError: Two parameters of a group have the same name; or, from the transformation's ``init``, a set does not
            fit.

    Example:
        >>> import torch, boxopt as bx
        >>> model = torch.nn.Linear(2, 1)
        >>> make = lambda lr: bx.projected(bx.adam(lr), bx.Box(-0.5, 0.5), deterministic=False)
        >>> optimizer = bx.TorchOptimizer(model.named_parameters(), make, lr=0.2)
        >>> scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(3, 2)).sum().backward()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> model.weight
        Parameter containing:
        tensor([[-0.5000, -0.5000]], requires_grad=True)

    Source:
        `torch.optim.Optimizer`.
    """

    def __init__(
        self,
        params: Any,
        transformation: GradientTransformation | Callable[..., GradientTransformation],
        *,
        within: ParameterSet | None = None,
        fused: bool = False,
        **hyperparameters: Any,
    ) -> None:
        if within is not None and not hasattr(within, "project"):
            raise TypeError(f"within is a constraint set, such as bx.Box(0.0, 1.0), got {type(within).__name__}")
        self._transformation = transformation
        self._within = within
        self._fused = fused
        self._arguments = _arguments(transformation)
        strange = sorted(hyperparameters.keys() - set(self._arguments.values()))
        if strange:
            takes = ", ".join(self._arguments.values()) or "none; give a function of them that makes it"
            raise TypeError(f"the transformation has no hyperparameter {', '.join(strange)}; it has {takes}")
        self._cohorts: list[list[Cohort | FusedCohort]] = []
        self._made: dict[int, tuple[list[Any], GradientTransformation]] = {}
        self._compiled: list[tuple[dict[str, Any], Callable[..., Any]]] = []
        super().__init__(params, hyperparameters)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether torch's GradScaler leaves the gradients scaled, and skipping to `step`.

        It refuses to unscale 16-bit gradients, in which small numbers would be lost. Others it unscales itself.
        """
        return any(param.dtype is torch.float16 for group in self.param_groups for param in group["params"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with hyperparameters of its own; what it does not name are the defaults.

        Args:
            param_group: ``{"params": ..., "lr": ...}``.
        """
        super().add_param_group(param_group)
        number = len(self.param_groups) - 1
        try:
            params = self._named(number)
            self._cohorts.append([])
            self._join(number, {name: param for name, param in params.items() if param.requires_grad})
        except Exception:
            self.param_groups.pop()
            del self._cohorts[number:]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: A function that computes the gradients anew and returns the loss. Transformations that take a
                ``value`` are given the loss.

        Returns:
            What the closure returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if bool(getattr(self, "found_inf", False)):  # GradScaler's attributes, while it calls
            return loss
        scale = getattr(self, "grad_scale", None)
        for number, group in enumerate(self.param_groups):
            known = {id(param) for cohort in self._cohorts[number] for param in cohort.params.values()}
            new = {id(param) for param in group["params"] if param.grad is not None} - known
            if new:
                self._join(number, {name: param for name, param in self._named(number).items() if id(param) in new})
            for cohort in self._cohorts[number]:
                if any(param.grad is not None for param in cohort.params.values()):
                    self._move(number, cohort, loss, scale)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the hyperparameters and the state that another optimizer's ``state_dict`` returned, bit by bit.

        Args:
            state_dict: As ``state_dict`` returns it. If it does not fit, nothing is taken over.

        Raises:
            ValueError: The state is another transformation's, or of parameters of other shapes; the message names it.
        """
        before = self.state, self.param_groups, self._cohorts, self._made
        handle = self.register_load_state_dict_pre_hook(_hide)
        try:
            super().load_state_dict(state_dict)
        except Exception:
            self.state, self.param_groups, self._cohorts, self._made = before
            raise
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        names = ("_transformation", "_within", "_fused", "_arguments")
        return super().__getstate__() | {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was pickled, or what `load_state_dict` has read."""
        found: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        for param, entry in state["state"].items():
            found[param] = {
                key: value.tensor.to(param.device) if isinstance(value, _Hidden) else value
                for key, value in entry.items()
            }
        super().__setstate__({**state, "state": found})
        self._made = {}
        self._compiled = self.__dict__.get("_compiled", [])
        self._cohorts = []
        for number in range(len(self.param_groups)):
            known = {name: param for name, param in self._named(number).items() if param in found}
            self._cohorts.append(self._formed(number, known) if known else [])

    def _named(self, number: int) -> dict[str, Tensor]:
        """The parameters of a group by name."""
        group = self.param_groups[number]
        params = group["params"]
        names = group.get("param_names") or list(map(str, range(len(params))))
        named = dict(zip(names, params, strict=True))
        if len(named) < len(params):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"several parameters of a group are called {', '.join(twice)}")
        if self._fused:  # parameters of one role side by side: those that a pattern matches are few pieces then
            return dict(sorted(named.items(), key=lambda item: item[0].split(".")[::-1]))
        return named

    def _join(self, number: int, params: dict[str, Tensor]) -> None:
        """Begin with some parameters of a group."""
        if not params:
            return
        transformation = on_leaves(self._made_for(number))
        with torch.no_grad():
            tree_of = {name: param.detach() for name, param in params.items()}
            check = getattr(self._within, "check", None)
            if check is not None:
                check(tree_of)
            state = transformation.init(packed_parameters(tree_of)[0] if self._fused else tree_of)
            # What a state keeps of the parameters is a copy, since they are written over.
            state = tree.map(torch.clone, state)
            kind = FusedCohort if self._fused else Cohort
            entries = [self.state[param] for param in params.values()]
            self._cohorts[number].append(kind(params, Places.of(state, list(params)), entries, state))

    @torch.no_grad()
    def _formed(self, number: int, params: dict[str, Tensor]) -> list[Cohort | FusedCohort]:
        """The cohorts of parameters whose state is known: those whose counters are the same."""
        kind = FusedCohort if self._fused else Cohort
        transformation = on_leaves(self._made_for(number))
        whole = Places.expected(transformation, params, self._fused)
        whole.check([self.state[param] for param in params.values()])
        groups: list[dict[str, Tensor]] = []
        for name, param in params.items():
            for group in groups:
                first = self.state[next(iter(group.values()))]
                if all(_same(first[key], self.state[param][key]) for key in whole.common):
                    group[name] = param
                    break
            else:
                groups.append({name: param})
        return [
            kind(
                group,
                whole if len(groups) == 1 else Places.expected(transformation, group, self._fused),
                [self.state[param] for param in group.values()],
            )
            for group in groups
        ]

    def _hyperparameters(self, number: int) -> dict[str, Any]:
        """The arguments for the function that makes a group's transformation."""
        group = self.param_groups[number]
        return {argument: group[key] for argument, key in self._arguments.items() if key in group}

    def _made_for(self, number: int) -> GradientTransformation:
        """The transformation of a group, made anew when a hyperparameter has changed."""
        if isinstance(self._transformation, GradientTransformation):
            return self._transformation
        given = self._hyperparameters(number)
        values = list(given.values())
        fixed = not any(isinstance(leaf, Tensor) for leaf in tree.leaves(values))
        if fixed and number in self._made and self._made[number][0] == values:
            return self._made[number][1]
        made = self._transformation(**given)
        if not isinstance(made, GradientTransformation):
            raise TypeError(f"the function makes a transformation, as bx.adam does; got {type(made).__name__}")
        if fixed:
            self._made[number] = values, made
        return made

    def _move(self, number: int, cohort: Cohort | FusedCohort, loss: Any, scale: Tensor | None) -> None:
        entries = [self.state[param] for param in cohort.params.values()]
        transformation = self._made_for(number)
        taken = accepted(transformation)
        extra: dict[str, Any] = {}
        if loss is not None and (taken is None or "value" in taken):
            extra["value"] = torch.as_tensor(loss).detach()
        if isinstance(cohort, Cohort):
            cohort.step(entries, transformation, self._within, extra, scale)
            return
        given = self._hyperparameters(number)
        device = tree.device_of(cohort.params)
        numbers = {
            name: tree.map(lambda x: as_tensor(x, None).to(device), value)
            for name, value in given.items()
            if is_numeric(value)
        }
        static = {name: value for name, value in given.items() if name not in numbers}
        cohort.step(entries, self._step_with(static), numbers, extra, scale)

    def _step_with(self, static: dict[str, Any]) -> Callable[..., Any]:
        """The compiled step for some hyperparameters that are not numbers."""
        for known, function in self._compiled:
            if known == static:
                return function
        make, within = self._transformation, self._within

        def step(params: Any, state: Any, gradients: Any, numbers: Any, extra: Any, scale: Any) -> tuple[Any, Any]:
            gradients = unscaled(gradients, scale)
            made = make if isinstance(make, GradientTransformation) else make(**numbers, **static)
            updates, state = on_leaves(made).update(gradients, state, params, **extra)
            return apply_updates(params, updates, within), state

        self._compiled.append((static, compile(step, donate_argnums=(0, 1))))
        return self._compiled[-1][1]


class _Hidden:
    """A tensor that the base class will not cast."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _hide(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    hidden = {
        param: {key: _Hidden(value) if isinstance(value, Tensor) else value for key, value in entry.items()}
        for param, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": hidden}


def _arguments(transformation: Any) -> dict[str, str]:
    """From each argument of the function that makes a transformation to its name in ``param_groups``."""
    if isinstance(transformation, GradientTransformation):
        return {}
    parameters = inspect.signature(transformation).parameters
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {name: "lr" if name == "learning_rate" and "lr" not in named else name for name in named}


def _same(one: Any, other: Any) -> bool:
    """Whether two tensors have the same numbers, NaN included."""
    return bool(((one == other) | ((one != one) & (other != other))).all())
