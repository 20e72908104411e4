r"""Regularizers: convex functions with a proximal step, for `boxopt.prox`.

**Two at once.** The proximal step of a sum is not that of one term, then the other. It is, in every diagonal metric,
for:

- `prox(r)`, then `project(Box(...))`, r being `L1`, `L2` or `ElasticNet`;
- `prox(LInf(...))`, then `project(Box(-c, c))`, c the same for the whole vector;
- `prox(r)`, then `project(Box(l, u))`, l and u the same for the whole vector, r being `TotalVariation` or `FusedLasso`;
- `project(NonNegative())`, then `prox(r)`, r being `GroupLasso`, `SparseGroupLasso` or `LInf`;
- `prox(L1(...))`, then `prox(GroupLasso(...))`, which is `SparseGroupLasso`;

and in a scalar step size also for:

- `prox(TotalVariation(...))`, then `prox(L1(...))`, which is `FusedLasso`;
- `prox(r)`, then `prox(GroupLasso(...))`, r being `LInf`, `TotalVariation` or `FusedLasso`;
- `project(PSD())`, then `prox(Nuclear(...))`.

All else takes a `Sum`, which iterates.

Source: Y.-L. Yu, "On decomposing the proximal map", NeurIPS 2013.
"""

from boxopt.regularizers.base import Regularizer
from boxopt.regularizers.elastic_net import L1, L2, ElasticNet
from boxopt.regularizers.group_lasso import GroupLasso, SparseGroupLasso
from boxopt.regularizers.l_inf import LInf
from boxopt.regularizers.nuclear import Nuclear
from boxopt.regularizers.sum import Sum
from boxopt.regularizers.total_variation import FusedLasso, TotalVariation

__all__ = [
    "L1",
    "L2",
    "ElasticNet",
    "FusedLasso",
    "GroupLasso",
    "LInf",
    "Nuclear",
    "Regularizer",
    "SparseGroupLasso",
    "Sum",
    "TotalVariation",
]
