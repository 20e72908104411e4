r"""Regularizers: convex functions with a proximal step, for `boxopt.prox`.

**Two at once.** The proximal step of a sum is not that of one term, then the other. It is, in every diagonal metric
unless the table says otherwise, for:

| first | then |
|---|---|
| `prox(r)`, r = `L1`, `L2`, `ElasticNet` | `project(Box(...))` |
| `prox(LInf(...))` | `project(Box(-c, c))`, c the same for the whole vector |
| `prox(TotalVariation(...))`, `prox(FusedLasso(...))` | `project(Box(l, u))`, l and u the same for the whole vector |
| `project(NonNegative())` | `prox(r)`, r = `GroupLasso`, `SparseGroupLasso`, `LInf` |
| `prox(L1(...))` | `prox(GroupLasso(...))`, which is `SparseGroupLasso` |
| `prox(r)`, r = `LInf`, `TotalVariation`, `FusedLasso` | `prox(GroupLasso(...))`, in a scalar step size |
| `prox(TotalVariation(...))` | `prox(L1(...))`, which is `FusedLasso`, in a scalar step size |
| `project(PSD())` | `prox(Nuclear(...))`, in a scalar step size |

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
