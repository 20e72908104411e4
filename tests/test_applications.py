"""Problems with known answers: each solved by a chain, and by a solver that we did not write.

The data are those that scikit-learn ships; the portfolio's returns are simulated.
"""

import cvxpy
import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.decomposition import NMF
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch.func import grad

import boxopt as bx

S = bx.sets


def descend(tx, loss, params, steps):
    state, gradient = tx.init(params), grad(loss)
    for _ in range(steps):
        updates, state = tx.update(gradient(params), state, params)
        params = bx.apply_updates(params, updates)
    return params


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def accelerated(constraint, lipschitz, momentum=0.9):
    return bx.chain(bx.sgd(1 / lipschitz, momentum=momentum, nesterov=True), bx.project(constraint))


def test_linear_over_the_simplex_needs_the_metric():
    """cᵀx from the centre. Adam makes the same step in each coordinate, which a Euclidean projection takes back."""
    costs, centre = torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 1 / 3)
    adam, project = bx.adam(0.03), bx.project(S.Simplex())
    euclidean = adam._replace(step_size=lambda state, step_size: step_size)  # as if Adam had no metric
    loss = lambda x: costs @ x  # noqa: E731
    assert float(loss(descend(bx.chain(adam, project), loss, centre, 250))) == 1.0
    torch.testing.assert_close(descend(bx.chain(euclidean, project), loss, centre, 250), centre)


@pytest.mark.parametrize("optimizer", [bx.sgd(0.5), bx.adam(0.1)], ids=["sgd", "adam"])
def test_linear_over_the_ball(optimizer):
    costs = draw(8)
    x = descend(bx.chain(optimizer, bx.project(S.L2Ball(2.0))), lambda x: costs @ x, torch.zeros_like(costs), 300)
    torch.testing.assert_close(x, -2 * costs / costs.norm(), atol=1e-5, rtol=0)


def test_portfolio():
    """The mean-variance portfolio of 20 assets, long only, from five simulated years of daily returns."""
    loadings, noise = draw(20, 3, seed=1), draw(1250, 20, seed=3)
    returns = 5e-4 + 4e-4 * draw(20, seed=2) + 0.01 * (draw(1250, 3, seed=4) @ loadings.T / 2 + noise)
    mean, covariance, aversion = returns.mean(0), torch.cov(returns.T), 5.0

    weights = cvxpy.Variable(20)
    risk = cvxpy.quad_form(weights, cvxpy.psd_wrap(covariance.numpy()))
    problem = cvxpy.Problem(
        cvxpy.Minimize(aversion / 2 * risk - mean.numpy() @ weights), [weights >= 0, cvxpy.sum(weights) == 1]
    )
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)

    lipschitz = float(aversion * torch.linalg.eigvalsh(covariance)[-1])
    loss = lambda w: aversion / 2 * w @ covariance @ w - mean @ w  # noqa: E731
    start = torch.full((20,), 0.05, dtype=torch.float64)
    reference = torch.tensor(weights.value)
    assert 2 <= int((reference > 1e-6).sum()) < 20  # some are held, some are not
    for tx, steps, tolerance in (
        (accelerated(S.Simplex(), lipschitz), 400, 1e-6),
        (bx.exponentiated_gradient(5 / lipschitz), 400, 1e-4),
        (bx.projected(bx.adam(bx.exponential_decay(0.02, 60, 0.5)), S.Simplex()), 600, 1e-4),
    ):
        result = descend(tx, loss, start, steps)
        torch.testing.assert_close(result, reference, atol=tolerance, rtol=0)
        assert float(S.Simplex().violation(result)) < 1e-14


def test_support_vector_machine():
    """The dual: ½αᵀQα − Σα over 0 ≤ α ≤ C, y·α = 0."""
    features, labels = load_iris(return_X_y=True)
    features, signs = StandardScaler().fit_transform(features[50:]), np.where(labels[50:] == 1, 1.0, -1.0)
    reference = SVC(kernel="linear", C=0.5, tol=1e-12).fit(features, signs)
    expected = torch.zeros(100, dtype=torch.float64)
    expected[reference.support_] = torch.tensor(reference.dual_coef_[0])

    x, y = torch.tensor(features), torch.tensor(signs)
    scaled = y[:, None] * x
    lipschitz = float(torch.linalg.matrix_norm(scaled, 2) ** 2)
    allowed = S.BoxHyperplane(0.0, 0.5, y, 0.0)
    loss = lambda alpha: ((scaled.T @ alpha) ** 2).sum() / 2 - alpha.sum()  # noqa: E731
    alpha = descend(accelerated(allowed, lipschitz, 0.97), loss, torch.zeros_like(y), 800)
    torch.testing.assert_close(y * alpha, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(x.T @ (y * alpha), torch.tensor(reference.coef_[0]), atol=1e-5, rtol=0)
    assert float(((alpha < 0) | (alpha > 0.5)).sum()) == 0


def test_matrix_factorization():
    """Digits ≈ W·H with no negative entry, against scikit-learn's coordinate descent from the same start."""
    pixels = load_digits().data / 16
    data = torch.tensor(pixels)
    size = float(data.mean() / 10) ** 0.5
    parts = {"w": size * draw(len(data), 10, seed=8).abs(), "h": size * draw(10, 64, seed=9).abs()}
    model = NMF(10, init="custom", tol=1e-5, max_iter=2000)
    model.fit_transform(pixels, W=parts["w"].numpy().copy(), H=parts["h"].numpy().copy())
    packed, unpack = bx.pack(parts)

    def loss(packed):
        factors = unpack(packed)
        return ((data - factors["w"] @ factors["h"]) ** 2).mean()

    rate = bx.cosine_decay_schedule(0.05, 600)
    factors = unpack(descend(bx.chain(bx.adam(rate), bx.project(S.NonNegative())), loss, packed, 600))
    assert float(loss(bx.pack(factors)[0])) * data.numel() <= 1.01 * model.reconstruction_err_**2
    assert all((leaf >= 0).all() for leaf in factors.values())


def test_sparse_logistic_regression():
    """With the norm of the penalized solution as the radius, the constrained problem has the same solution."""
    features, labels = load_breast_cancer(return_X_y=True)
    features = StandardScaler().fit_transform(features)
    reference = LogisticRegression(l1_ratio=1.0, C=0.05, solver="saga", tol=1e-9, max_iter=20_000).fit(features, labels)
    x, y = torch.tensor(features), torch.tensor(2.0 * labels - 1)

    def loss(params):
        return torch.nn.functional.softplus(-y * (x @ params["weight"] + params["bias"])).mean()

    expected = {"weight": torch.tensor(reference.coef_[0]), "bias": torch.tensor(reference.intercept_[0])}
    ball = S.ByPath({"weight": S.L1Ball(float(expected["weight"].abs().sum()))})
    start = {"weight": torch.zeros(30, dtype=torch.float64), "bias": torch.zeros((), dtype=torch.float64)}
    lipschitz = float(torch.linalg.matrix_norm(x, 2) ** 2 / len(x) + 1) / 4
    params = descend(accelerated(ball, lipschitz, 0.95), loss, start, 800)
    assert float(loss(params)) <= float(loss(expected)) + 1e-4
    torch.testing.assert_close(loss(params), loss(expected), atol=1e-4, rtol=0)
    assert int((params["weight"] != 0).sum()) == int((expected["weight"] != 0).sum()) < 30
    assert float(ball.violation(params)) == 0


def test_matrix_completion():
    """A matrix of rank 2 from 60 % of its entries, in a nuclear ball: by projection, and by Frank–Wolfe."""
    truth = draw(20, 2, seed=5) @ draw(2, 15, seed=6)
    seen = (torch.rand(20, 15, generator=torch.Generator().manual_seed(7)) < 0.6).double()
    ball = S.NuclearBall(0.9 * float(torch.linalg.matrix_norm(truth, "nuc")))
    loss = lambda x: ((x - truth) ** 2 * seen).sum() / 2  # noqa: E731
    start = torch.zeros_like(truth)
    projected = descend(accelerated(ball, 1.0), loss, start, 300)
    optimal = float(loss(projected))
    assert float(bx.frank_wolfe_gap(ball, projected, grad(loss)(projected))) < 1e-6 * optimal  # a certificate

    result = descend(bx.frank_wolfe(ball), loss, start, 300)
    gap = float(bx.frank_wolfe_gap(ball, result, grad(loss)(result)))
    assert -1e-9 <= float(loss(result)) - optimal <= gap
    assert float(loss(result)) <= 1.05 * optimal
    assert float(ball.violation(result)) == 0
    recovered = float(torch.linalg.norm(projected - truth) / torch.linalg.norm(truth))
    assert recovered < 0.2
