"""The contributed optimizers, and those with a line search: see optimizer_table.py."""

import warnings

import boxopt as bx
from tests.optimizer_table import Row

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import optax

ours, theirs = bx.contrib, optax.contrib

CONTRIB_ROWS: list[Row] = [
    Row(
        "acprop",
        "Zhuang et al., NeurIPS 2021",
        "lr/(√ŝ + ε), ŝ of the step before",
        lambda: ours.acprop(1e-3, b2=0.99, weight_decay=1e-3),
        lambda: theirs.acprop(1e-3, b2=0.99, weight_decay=1e-3),
    ),
    Row(
        "ademamix",
        "Pagliardini, Ablin and Grangier, 2024",
        "lr/(√v̂ + ε)",
        lambda: ours.ademamix(2e-3, b3=0.99, alpha=2.0, eps_root=1e-8, weight_decay=1e-3),
        lambda: theirs.ademamix(2e-3, b3=0.99, alpha=2.0, eps_root=1e-8, weight_decay=1e-3),
    ),
    Row(
        "simplified_ademamix",
        "Morwani et al., 2025",
        "lr/(√v̂ + ε)",
        lambda: ours.simplified_ademamix(1e-4, b1=0.9, alpha=2.0),
        lambda: theirs.simplified_ademamix(1e-4, b1=0.9, alpha=2.0),
    ),
    Row(
        "adopt",
        "Taniguchi et al., NeurIPS 2024",
        "lr/max(√v, ε), of the next gradient",
        lambda: ours.adopt(5e-3, b2=0.99),
        lambda: theirs.adopt(5e-3, b2=0.99),
    ),
    Row(
        "cocob",
        "Orabona and Tommasi, NeurIPS 2017",
        "(L + R)/(L·max(G + L, αL))",
        lambda: ours.cocob(alpha=1000.0, weight_decay=1e-3),
        lambda: theirs.cocob(alpha=1000.0, weight_decay=1e-3),
    ),
    Row(
        "madgrad",
        "Defazio and Jelassi, JMLR 2022",
        "(1 − β)·lr·√t/(∛G + ε)",
        lambda: ours.madgrad(1e-2, weight_decay=1e-3),
        lambda: theirs.madgrad(1e-2, weight_decay=1e-3),
        note="optax computes lr·√t in float32 also where all else is float64",
        tolerance=1e-7,
    ),
    Row(
        "dadapt_adamw",
        "Defazio and Mishchenko, ICML 2023",
        "d·lr·√(1 − β₂ᵗ)/(√v + ε)",
        lambda: ours.dadapt_adamw(0.1, estim_lr0=1e-3, weight_decay=1e-2),
        lambda: theirs.dadapt_adamw(0.1, estim_lr0=1e-3, weight_decay=1e-2),
    ),
    Row(
        "prodigy",
        "Mishchenko and Defazio, ICML 2024",
        "d²·lr·√(1 − β₂ᵗ)/(√v + dε)",
        lambda: ours.prodigy(0.1, estim_lr0=1e-3, weight_decay=1e-2),
        lambda: theirs.prodigy(0.1, estim_lr0=1e-3, weight_decay=1e-2),
        note="compared over 250 steps: then its path is chaotic",
    ),
    Row(
        "dog",
        "Ivgi, Hinder and Carmon, ICML 2023",
        "lr·r̄/√(G + ε), one number",
        lambda: ours.dog(0.5, ("heuristic", 1e-3), weight_decay=1e-3),
        lambda: theirs.dog(0.5, ("heuristic", 1e-3), weight_decay=1e-3),
    ),
    Row(
        "dowg",
        "Khaled, Mishchenko and Jin, NeurIPS 2023",
        "lr·r²/(√w + ε), one number",
        lambda: ours.dowg(0.1),
        lambda: theirs.dowg(0.1),
    ),
    Row(
        "scale_by_distance_over_gradients",
        "Ivgi, Hinder and Carmon, ICML 2023",
        "c·r̄/√(G + ε), one number a leaf",
        lambda: bx.chain(bx.scale_by_distance_over_gradients(1e-2), bx.scale(-0.3)),
        lambda: optax.chain(optax.scale_by_distance_over_gradients(1e-2, param_dtype=None), optax.scale(-0.3)),
    ),
    Row(
        "mechanize",
        "Cutkosky, Defazio and Mehta, NeurIPS 2023",
        "the base's, times Σs",
        lambda: ours.mechanize(bx.adam(0.1), s_init=1e-3),
        lambda: theirs.mechanize(optax.adam(0.1), s_init=1e-3),
        note="compared over 30 steps: its path is chaotic, so that after 45 an ulp in the start has grown past 1e-10",
    ),
    Row(
        "momo",
        "Schaipp et al., ICML 2024",
        "τ, one number",
        lambda: ours.momo(0.02, weight_decay=1e-2, adapt_lower_bound=True),
        lambda: theirs.momo(0.02, weight_decay=1e-2, adapt_lower_bound=True),
    ),
    Row(
        "momo_adam",
        "Schaipp et al., ICML 2024",
        "(1 − β₁ᵗ)·τ/(√v̂ + ε)",
        lambda: ours.momo_adam(0.02, weight_decay=1e-2),
        lambda: theirs.momo_adam(0.02, weight_decay=1e-2),
    ),
    Row(
        "reduce_on_plateau",
        "",
        "times the scale",
        lambda: bx.chain(bx.adam(0.05), ours.reduce_on_plateau(0.5, 3, cooldown=2, accumulation_size=2, rtol=0.05)),
        lambda: optax.chain(
            optax.adam(0.05), theirs.reduce_on_plateau(0.5, 3, cooldown=2, accumulation_size=2, rtol=0.05)
        ),
    ),
    Row(
        "muon",
        "Jordan et al., 2024",
        "lr·√max(1, columns/rows): no diagonal metric",
        lambda: ours.muon(2e-3, weight_decay=1e-2),
        lambda: theirs.muon(2e-3, weight_decay=1e-2),
    ),
    Row(
        "schedule_free_sgd",
        "Defazio et al., NeurIPS 2024",
        "lr·(β₁c + 1 − β₁)",
        lambda: ours.schedule_free_sgd(2e-2, weight_decay=1e-3),
        lambda: theirs.schedule_free_sgd(2e-2, weight_decay=1e-3),
    ),
    Row(
        "schedule_free_adamw",
        "Defazio et al., NeurIPS 2024",
        "lr·(β₁c + 1 − β₁)/(√v̂ + ε)",
        lambda: ours.schedule_free_adamw(1e-2, weight_decay=1e-2),
        lambda: theirs.schedule_free_adamw(1e-2, weight_decay=1e-2),
    ),
    Row(
        "sophia",
        "Liu et al., ICLR 2024",
        "lr/max(γh, ε, |m̂|/ρ)",
        lambda: ours.sophia(5e-3, gamma=0.5),
        lambda: theirs.sophia(5e-3, gamma=0.5),
        note="random signs included; compared over 120 steps, each of which estimates the Hessian's diagonal",
    ),
    Row(
        "galore",
        "Zhao et al., ICML 2024",
        "lr·scale for matrices: no diagonal metric; lr/(√v̂ + ε) for other leaves",
        lambda: ours.galore(5e-3, 1, 400, 0.5, weight_decay=1e-3),
        lambda: theirs.galore(5e-3, 1, 400, 0.5, weight_decay=1e-3),
        note="optax computes singular vectors in float32 also where all else is float64",
        tolerance=1e-6,
    ),
    Row(
        "scale_by_backtracking_linesearch",
        "Nocedal and Wright, algorithm 3.1",
        "times η",
        lambda: bx.chain(bx.sgd(1.0), bx.scale_by_backtracking_linesearch(15, store_grad=True)),
        lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15, store_grad=True)),
        note="compared over 40 steps, each of which takes up to 17 evaluations",
    ),
    Row(
        "scale_by_zoom_linesearch",
        "Nocedal and Wright, algorithms 3.5 and 3.6",
        "times η",
        lambda: bx.chain(bx.sgd(1.0), bx.scale_by_zoom_linesearch(10, max_learning_rate=3.0, curv_rtol=0.5)),
        lambda: optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(10, max_learning_rate=3.0, curv_rtol=0.5)),
        note="compared over 20 steps: its path is chaotic",
    ),
    Row(
        "scale_by_lbfgs",
        "Nocedal and Wright, algorithm 7.4",
        "unchanged: no diagonal metric",
        lambda: bx.lbfgs(0.1, 4, linesearch=None),
        lambda: optax.lbfgs(0.1, 4, linesearch=None),
        note="compared over 20 steps: its path is chaotic",
    ),
    Row(
        "lbfgs",
        "Nocedal and Wright, section 7.2",
        "times η: no diagonal metric",
        lambda: bx.lbfgs(),
        lambda: optax.lbfgs(),
        note="compared over 20 steps: its path is chaotic",
    ),
    Row(
        "shampoo",
        "Gupta, Koren and Singer, ICML 2018",
        "lr: no diagonal metric",
        lambda: ours.shampoo(0.05, block_size=2),
        note="optax has none; against the paper's formulas in numpy",
    ),
    Row(
        "soap",
        "Vyas et al., ICLR 2025",
        "lr: no diagonal metric",
        lambda: ours.soap(0.01, precondition_frequency=3, block_size=2),
        note="optax has none; against the paper's formulas in numpy",
    ),
    Row(
        "sam",
        "Foret et al., ICLR 2021",
        "the outer optimizer's",
        lambda: ours.sam(bx.adam(1e-2), bx.chain(ours.normalize(), bx.sgd(0.05, 0.5)), 3),
        lambda: theirs.sam(optax.adam(1e-2), optax.chain(theirs.normalize(), optax.sgd(0.05, 0.5)), 3),
    ),
]

# Other arguments of the same.
CONTRIB_VARIANTS: list[Row] = [
    Row(
        "adopt",
        "Taniguchi et al., NeurIPS 2024",
        "lr/max(√v, ε), of the next gradient",
        lambda: ours.adopt(5e-3, b2=0.99, nesterov=True, use_clipping=False),
        lambda: theirs.adopt(5e-3, b2=0.99, nesterov=True, use_clipping=False),
    ),
    Row(
        "prodigy",
        "Mishchenko and Defazio, ICML 2024",
        "d²·lr·√(1 − β₂ᵗ)/(√v + dε)",
        lambda: ours.prodigy(0.05, estim_lr0=1e-3, estim_lr_coef=0.5, safeguard_warmup=True),
        lambda: theirs.prodigy(0.05, estim_lr0=1e-3, estim_lr_coef=0.5, safeguard_warmup=True),
    ),
    Row(
        "dog",
        "Ivgi, Hinder and Carmon, ICML 2023",
        "lr·r̄/√(G + ε), one number",
        lambda: ours.dog(0.5, ("learning_rate", 1e-3)),
        lambda: theirs.dog(0.5, ("learning_rate", 1e-3)),
    ),
    Row(
        "momo_adam",
        "Schaipp et al., ICML 2024",
        "(1 − β₁ᵗ)·τ/(√v̂ + ε)",
        lambda: ours.momo_adam(0.02, adapt_lower_bound=True, lower_bound=-0.5),
        lambda: theirs.momo_adam(0.02, adapt_lower_bound=True, lower_bound=-0.5),
    ),
    Row(
        "muon",
        "Jordan et al., 2024; Ahn et al., 2025",
        "lr·√max(rows, columns)·rms: no diagonal metric",
        lambda: ours.muon(2e-3, "dion", nesterov=False, consistent_rms=0.2, preconditioning="spectral"),
        lambda: theirs.muon(2e-3, "dion", nesterov=False, consistent_rms=0.2, preconditioning="spectral"),
    ),
    Row(
        "muon",
        "Jordan et al., 2024; Boissin et al., 2025",
        "lr·√max(1, columns/rows): no diagonal metric",
        lambda: ours.muon(1e-3, adaptive=True, preconditioning="aol", adam_learning_rate=1e-2),
        lambda: theirs.muon(1e-3, adaptive=True, preconditioning="aol", adam_learning_rate=1e-2),
    ),
    Row(
        "sam",
        "Foret et al., ICLR 2021",
        "the outer optimizer's",
        lambda: ours.sam(bx.adam(1e-2), bx.chain(ours.normalize(), bx.sgd(0.05)), opaque_mode=True),
        lambda: theirs.sam(optax.adam(1e-2), optax.chain(theirs.normalize(), optax.sgd(0.05)), opaque_mode=True),
    ),
]
