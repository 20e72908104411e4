"""One row an optimizer: what docs/optimizers.md prints, and what test_optimizers.py compares, live, with its peers."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import boxopt as bx

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import optax


@dataclass(frozen=True)
class Row:
    """An optimizer, or a transformation, and where its numbers can be checked.

    Attributes:
        name: The export.
        paper: Where it is from.
        step_size: Its step size rule, as the documentation prints it; "unchanged" for what has no metric of its own.
        ours: Makes the boxopt transformation.
        optax: Makes optax's, the hyperparameters the same; None if it has none.
        torch: Makes the torch.optim optimizer from a list of parameters; None if there is none that agrees.
        note: Where conventions differ, or why there is no peer.
        tolerance: Relative, in float64, over the whole path; more than 1e-10 needs a reason in ``note``.
    """

    name: str
    paper: str
    step_size: str
    ours: Callable[[], Any]
    optax: Callable[[], Any] | None = None
    torch: Callable[[list[Any]], Any] | None = None
    note: str = ""
    tolerance: float = 1e-10


def precise_decay(count: Any, rate: Any) -> Any:
    """optax's decay of Adafactor's moments, which it computes in float32 always, in the precision at hand."""
    return 1.0 - (count + 1.0) ** -rate


def optax_adafactor(rate: float, least: int) -> Any:
    """The members of `optax.adafactor`, with the decay in float64."""
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=least, decay_rate_fn=precise_decay),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_learning_rate(rate, flip_sign=False),
        optax.scale_by_param_block_rms(),
        optax.scale(-1.0),
    )


def then_sgd(module: Any, transformation: Any, rate: float = 0.01) -> Any:
    """A transformation followed by a learning rate, so that its path can be compared."""
    return module.chain(transformation, module.sgd(rate))


ADAM = "lr/(√(v̂ + eps_root) + eps)"
ROWS = [
    Row(
        "adabelief",
        "Zhuang et al. 2020",
        "lr/(√v̂ + eps), v of g − m",
        lambda: bx.adabelief(0.01, eps=1e-8, eps_root=1e-8),
        lambda: optax.adabelief(0.01, eps=1e-8, eps_root=1e-8),
    ),
    Row(
        "adadelta",
        "Zeiler 2012",
        "lr·√((b + eps)/(a + eps))",
        lambda: bx.adadelta(1.0),
        lambda: optax.adadelta(1.0),
        lambda p: torch.optim.Adadelta(p, 1.0),
        "Without a learning rate optax ascends; here it is 1, as in torch.",
    ),
    Row(
        "adafactor",
        "Shazeer and Stern 2018",
        "lr·rms(x)/√(R·C/mean R)",
        lambda: bx.adafactor(0.02, 8),
        lambda: optax_adafactor(0.02, 8),
        note="optax computes the decay of the moments in float32; it is compared with that in float64. "
        "torch.optim.Adafactor factors every matrix, has ε elsewhere and a step that decays by itself.",
    ),
    Row(
        "adagrad",
        "Duchi, Hazan and Singer 2011",
        "lr/√(Σg² + eps)",
        lambda: bx.adagrad(0.1),
        lambda: optax.adagrad(0.1),
        note="torch.optim.Adagrad's defaults are `initial_accumulator_value=0, eps=1e-10, eps_in_sqrt=False`.",
    ),
    Row(
        "adam",
        "Kingma and Ba 2015",
        ADAM,
        lambda: bx.adam(0.01),
        lambda: optax.adam(0.01),
        lambda p: torch.optim.Adam(p, 0.01),
    ),
    Row(
        "adamax",
        "Kingma and Ba 2015",
        "lr/max(b2·v, |g| + eps)",
        lambda: bx.adamax(0.01),
        lambda: optax.adamax(0.01),
        lambda p: torch.optim.Adamax(p, 0.01),
    ),
    Row(
        "adamaxw",
        "Loshchilov and Hutter 2019",
        "as adamax",
        lambda: bx.adamaxw(0.01, weight_decay=0.1),
        lambda: optax.adamaxw(0.01, weight_decay=0.1),
    ),
    Row(
        "adamw",
        "Loshchilov and Hutter 2019",
        ADAM,
        lambda: bx.adamw(0.01, weight_decay=0.01),
        lambda: optax.adamw(0.01, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 0.01),
        "The default decay is optax's 1e-4; torch's is 1e-2.",
    ),
    Row(
        "adan",
        "Xie et al. 2022",
        "lr/(√(n̂ + eps_root) + eps)",
        lambda: bx.adan(0.01, weight_decay=0.1),
        lambda: optax.adan(0.01, weight_decay=0.1),
    ),
    Row(
        "amsgrad",
        "Reddi, Kale and Kumar 2018",
        "lr/(√(max v̂ + eps_root) + eps)",
        lambda: bx.amsgrad(0.01),
        lambda: optax.amsgrad(0.01),
        note="torch.optim.Adam(amsgrad=True) takes the maximum before it corrects the bias.",
    ),
    Row(
        "fromage",
        "Bernstein et al. 2020",
        "lr·‖x‖/‖g‖/√(1 + lr²)",
        lambda: bx.fromage(0.002),
        lambda: optax.fromage(0.002),
    ),
    Row("lamb", "You et al. 2020", "Adam's·‖x‖/‖u‖", lambda: bx.lamb(0.01), lambda: optax.lamb(0.01)),
    Row(
        "lars",
        "You, Gitman and Ginsburg 2017",
        "lr·c·‖x‖/‖g‖",
        lambda: bx.lars(0.5, 0.01),
        lambda: optax.lars(0.5, 0.01),
    ),
    Row("lion", "Chen et al. 2023", "lr", lambda: bx.lion(0.001), lambda: optax.lion(0.001)),
    Row(
        "nadam",
        "Dozat 2016",
        ADAM,
        lambda: bx.nadam(0.01),
        lambda: optax.nadam(0.01),
        note="torch.optim.NAdam lets β₁ follow a schedule of its own.",
    ),
    Row(
        "nadamw",
        "Dozat 2016",
        ADAM,
        lambda: bx.nadamw(0.01, weight_decay=0.1),
        lambda: optax.nadamw(0.01, weight_decay=0.1),
    ),
    Row(
        "noisy_sgd",
        "Neelakantan et al. 2015",
        "lr",
        lambda: bx.noisy_sgd(0.01, key=3),
        lambda: optax.noisy_sgd(0.01, key=3),
        note="The noise is optax's with JAX's default generator, number for number.",
    ),
    Row(
        "novograd",
        "Ginsburg et al. 2019",
        "lr/(√v + eps), a leaf",
        lambda: bx.novograd(0.01),
        lambda: optax.novograd(0.01),
        note="Within 1e-9: the roundings of jaxlib 0.9 grow to 1.3e-10.",
        tolerance=1e-9,
    ),
    Row(
        "optimistic_adam",
        "Daskalakis et al. 2018",
        ADAM,
        lambda: bx.optimistic_adam(0.01),
        lambda: optax.optimistic_adam(0.01),
        note="optax advises optimistic_adam_v2.",
    ),
    Row(
        "optimistic_adam_v2",
        "Daskalakis et al. 2018",
        ADAM + "·alpha",
        lambda: bx.optimistic_adam_v2(0.01, beta=0.5),
        lambda: optax.optimistic_adam_v2(0.01, beta=0.5),
    ),
    Row(
        "optimistic_gradient_descent",
        "Mokhtari et al. 2020",
        "lr·alpha",
        lambda: bx.optimistic_gradient_descent(0.01),
        lambda: optax.optimistic_gradient_descent(0.01),
    ),
    Row(
        "polyak_sgd",
        "Loizou et al. 2021",
        "min((f − f_min)/‖g‖², max)·scaling",
        lambda: bx.polyak_sgd(0.05),
        lambda: optax.polyak_sgd(0.05),
        note="update takes value=.",
    ),
    Row(
        "radam",
        "Liu et al. 2020",
        "lr·r/(√(v̂ + eps_root) + eps); lr at first",
        lambda: bx.radam(0.01, eps=1e-16),
        lambda: optax.radam(0.01, eps=1e-16),
        lambda p: torch.optim.RAdam(p, 0.01, eps=1e-16),
        "torch.optim.RAdam adds ε before it corrects the bias: compared where ε is negligible.",
    ),
    Row(
        "rmsprop",
        "Tieleman and Hinton 2012",
        "lr/√(v + eps)",
        lambda: bx.rmsprop(0.002, eps=1e-4),
        lambda: optax.rmsprop(0.002, eps=1e-4),
        note="torch.optim.RMSprop's defaults are `decay=0.99, eps_in_sqrt=False`.",
    ),
    Row(
        "rprop",
        "Riedmiller and Braun 1993",
        "its own η, a number each",
        lambda: bx.rprop(0.001, max_step_size=0.01),
        torch=lambda p: torch.optim.Rprop(p, 0.001, step_sizes=(1e-6, 0.01)),
        note="optax 0.2.8 makes each update one step late, and none at the first; here as in the paper and in torch.",
    ),
    Row(
        "sgd",
        "Robbins and Monro 1951; Polyak 1964",
        "lr",
        lambda: bx.sgd(0.01, momentum=0.8, nesterov=True),
        lambda: optax.sgd(0.01, momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.8, nesterov=True),
        "`weight_decay` is torch's; dampening is not offered.",
    ),
    Row("sign_sgd", "Bernstein et al. 2018", "lr", lambda: bx.sign_sgd(0.001), lambda: optax.sign_sgd(0.001)),
    Row("signum", "Bernstein et al. 2018", "lr", lambda: bx.signum(0.001), lambda: optax.signum(0.001)),
    Row(
        "sm3",
        "Anil et al. 2019",
        "lr/√(min of covers + eps)",
        lambda: bx.sm3(0.05),
        lambda: optax.sm3(0.05),
        note="optax has no scalars.",
    ),
    Row("yogi", "Zaheer et al. 2018", ADAM, lambda: bx.yogi(0.01), lambda: optax.yogi(0.01)),
]
TRANSFORMATIONS = [
    Row(
        "adaptive_grad_clip",
        "Brock et al. 2021",
        "unchanged",
        lambda: then_sgd(bx, bx.adaptive_grad_clip(0.1)),
        lambda: then_sgd(optax, optax.adaptive_grad_clip(0.1)),
    ),
    Row(
        "add_decayed_weights",
        "Loshchilov and Hutter 2019",
        "unchanged",
        lambda: bx.chain(bx.add_decayed_weights(0.1), bx.adam(0.01)),
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.01)),
    ),
    Row(
        "add_noise",
        "Neelakantan et al. 2015",
        "unchanged",
        lambda: then_sgd(bx, bx.add_noise(0.1, 0.5, 7)),
        lambda: then_sgd(optax, optax.add_noise(0.1, 0.5, 7)),
    ),
    Row(
        "apply_every",
        "",
        "unchanged; 0 when held back",
        lambda: bx.chain(bx.sgd(0.01), bx.apply_every(3)),
        lambda: optax.chain(optax.sgd(0.01), optax.apply_every(3)),
    ),
    Row(
        "centralize",
        "Yong et al. 2020",
        "unchanged",
        lambda: then_sgd(bx, bx.centralize()),
        lambda: then_sgd(optax, optax.centralize()),
    ),
    Row(
        "clip",
        "",
        "unchanged",
        lambda: bx.chain(bx.clip(0.2), bx.sgd(0.01, 0.8)),
        lambda: optax.chain(optax.clip(0.2), optax.sgd(0.01, 0.8)),
    ),
    Row(
        "clip_by_block_rms",
        "Shazeer and Stern 2018",
        "unchanged",
        lambda: then_sgd(bx, bx.clip_by_block_rms(0.1)),
        lambda: then_sgd(optax, optax.clip_by_block_rms(0.1)),
    ),
    Row(
        "clip_by_global_norm",
        "Pascanu et al. 2013",
        "unchanged",
        lambda: bx.chain(bx.clip_by_global_norm(0.3), bx.sgd(0.02, 0.8)),
        lambda: optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(0.02, 0.8)),
    ),
    Row("ema", "", "unchanged", lambda: then_sgd(bx, bx.ema(0.8)), lambda: then_sgd(optax, optax.ema(0.8))),
    Row(
        "freeze",
        "",
        "0 where frozen",
        lambda: bx.chain(bx.sgd(0.01), bx.freeze(False)),
        lambda: optax.chain(optax.sgd(0.01), optax.transforms.freeze(False)),
    ),
    Row(
        "normalize_by_update_norm",
        "",
        "·scale_factor/‖g‖",
        lambda: then_sgd(bx, bx.normalize_by_update_norm()),
        lambda: then_sgd(optax, optax.normalize_by_update_norm()),
    ),
    Row(
        "scale_by_param_block_norm",
        "",
        "·‖x‖, a leaf",
        lambda: then_sgd(bx, bx.scale_by_param_block_norm(), 0.001),
        lambda: then_sgd(optax, optax.scale_by_param_block_norm(), 0.001),
    ),
    Row(
        "scale_by_param_block_rms",
        "Shazeer and Stern 2018",
        "·rms(x), a leaf",
        lambda: then_sgd(bx, bx.scale_by_param_block_rms()),
        lambda: then_sgd(optax, optax.scale_by_param_block_rms()),
    ),
    Row(
        "scale_by_stddev",
        "Graves 2013",
        "/√(v − m² + eps)",
        lambda: bx.rmsprop(0.001, 0.95, 1e-6, 0.1, False, True, 0.5, True),
        lambda: optax.rmsprop(0.001, 0.95, 1e-6, 0.1, False, True, 0.5, True),
    ),
    Row(
        "zero_nans",
        "",
        "unchanged",
        lambda: then_sgd(bx, bx.zero_nans()),
        lambda: then_sgd(optax, optax.zero_nans()),
    ),
]
# The same optimizers with other arguments: compared, not printed.
VARIANTS = [
    Row("sgd", "", "", lambda: bx.sgd(0.01), lambda: optax.sgd(0.01)),
    Row(
        "sgd",
        "",
        "",
        lambda: bx.sgd(0.01, momentum=0.8, nesterov=True, weight_decay=0.1),
        torch=lambda p: torch.optim.SGD(p, 0.01, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    Row(
        "adam",
        "",
        "",
        lambda: bx.adam(0.01, 0.8, 0.99, 1e-6, 1e-4),
        lambda: optax.adam(0.01, 0.8, 0.99, 1e-6, 1e-4),
    ),
    Row(
        "adam",
        "",
        "",
        lambda: bx.adam(bx.warmup_cosine_decay_schedule(0.0, 0.02, 10, 150, 1e-3)),
        lambda: optax.adam(optax.warmup_cosine_decay_schedule(0.0, 0.02, 10, 150, 1e-3)),
        note="optax computes this schedule in float32 always.",
        tolerance=1e-6,
    ),
    Row(
        "rmsprop",
        "",
        "",
        lambda: bx.rmsprop(0.001, 0.99, eps_in_sqrt=False, centered=True, momentum=0.5),
        torch=lambda p: torch.optim.RMSprop(p, 0.001, centered=True, momentum=0.5),
    ),
    Row(
        "rmsprop",
        "",
        "",
        lambda: bx.rmsprop(0.001, 0.99, eps_in_sqrt=False),
        torch=lambda p: torch.optim.RMSprop(p, 0.001),
    ),
    Row(
        "adagrad",
        "",
        "",
        lambda: bx.adagrad(0.1, 0.0, 1e-10, eps_in_sqrt=False),
        torch=lambda p: torch.optim.Adagrad(p, 0.1),
    ),
    Row(
        "adafactor",
        "",
        "",
        lambda: bx.adafactor(0.02, 8, momentum=0.9, weight_decay_rate=0.001),
        lambda: optax.adafactor(0.02, 8, momentum=0.9, weight_decay_rate=0.001, dtype_momentum=None),
        note="optax computes the decay of the moments in float32 always.",
        tolerance=1e-5,
    ),
    Row(
        "adabelief",
        "",
        "",
        lambda: bx.adabelief(0.01, eps=1e-8, eps_root=1e-8, nesterov=True),
        lambda: optax.adabelief(0.01, eps=1e-8, eps_root=1e-8, nesterov=True),
    ),
    Row(
        "amsgrad",
        "",
        "",
        lambda: bx.amsgrad(0.01, eps_root=1e-6, bias_correction_mu=False, bias_correction_nu=False),
        lambda: optax.amsgrad(0.01, eps_root=1e-6, bias_correction_mu=False, bias_correction_nu=False),
    ),
    Row(
        "radam",
        "",
        "",
        lambda: bx.radam(0.01, b2=0.99, nesterov=True),
        lambda: optax.radam(0.01, b2=0.99, nesterov=True),
    ),
    Row(
        "novograd",
        "",
        "",
        lambda: bx.novograd(0.01, eps=0.1, weight_decay=0.01),
        lambda: optax.novograd(0.01, eps=0.1, weight_decay=0.01),
    ),
    Row(
        "polyak_sgd",
        "",
        "",
        lambda: bx.polyak_sgd(0.05, 0.5, 0.1, 1e-3, "sps+"),
        lambda: optax.polyak_sgd(0.05, 0.5, 0.1, 1e-3, "sps+"),
    ),
    Row(
        "sm3",
        "",
        "",
        lambda: bx.chain(bx.scale_by_sm3(0.9, 0.9), bx.scale(-0.01)),
        lambda: optax.chain(optax.scale_by_sm3(0.9, 0.9), optax.scale(-0.01)),
    ),
    Row(
        "rmsprop",
        "",
        "",
        lambda: bx.rmsprop(0.002, 0.99, eps=1e-4, bias_correction=True),
        lambda: optax.rmsprop(0.002, 0.99, eps=1e-4, bias_correction=True),
    ),
    Row(
        "rmsprop",
        "",
        "",
        lambda: bx.rmsprop(0.002, 0.99, eps=1e-2, centered=True, bias_correction=True),
        lambda: optax.rmsprop(0.002, 0.99, eps=1e-2, centered=True, bias_correction=True),
    ),
    Row(
        "scale_by_lion",
        "",
        "",
        lambda: then_sgd(bx, bx.scale_by_lion(mode="smooth", smooth_beta=2.0)),
        lambda: then_sgd(optax, optax.scale_by_lion(mode="smooth", smooth_beta=2.0)),
    ),
    Row(
        "scale_by_lion",
        "",
        "",
        lambda: then_sgd(bx, bx.scale_by_lion(mode="refined")),
        lambda: then_sgd(optax, optax.scale_by_lion(mode="refined")),
    ),
]
