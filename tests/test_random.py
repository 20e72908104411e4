"""Random numbers of a key: the published vectors, JAX's numbers, the normal distribution, and every mode alike."""

import warnings

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from scipy import stats
from torch.func import vmap

import boxopt as bx
from boxopt.core.random import make_key, normal, split, threefry, uniform

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jax


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_published_vectors(key, counter, expected):
    """Of the authors' library, Random123."""
    words = threefry(torch.tensor(key), *(torch.tensor(word) for word in counter))
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("seed", [0, 42, 2**31 + 5])
def test_jax_has_the_same_numbers(seed):
    with jax.enable_x64(True):
        key = jax.random.PRNGKey(seed)
        np.testing.assert_array_equal(split(make_key(seed), 5).numpy(), np.asarray(jax.random.split(key, 5)))
        for dtype in ("float32", "float64"):
            ours = uniform(make_key(seed), (50, 3), getattr(torch, dtype)).numpy()
            np.testing.assert_array_equal(ours, np.asarray(jax.random.uniform(key, (50, 3), dtype)))
            ours = normal(make_key(seed), (50, 3), getattr(torch, dtype)).numpy()
            theirs = np.asarray(jax.random.normal(key, (50, 3), dtype))
            np.testing.assert_allclose(ours, theirs, rtol=1e-13 if dtype == "float64" else 1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_distribution_is_normal(dtype):
    numbers = normal(make_key(1), (200_000,), dtype).double()
    assert torch.isfinite(numbers).all()
    assert abs(float(numbers.mean())) < 4 / 200_000**0.5
    assert abs(float(numbers.var()) - 1) < 4 * (2 / 200_000) ** 0.5
    if dtype != torch.bfloat16:  # its numbers come in steps
        assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-3


def test_members_steps_and_leaves_are_independent():
    """Correlations over 20 members, 10 steps and 2 leaves of 4,000 numbers each are those of independent numbers."""
    params = {"a": torch.zeros(4000, dtype=torch.float64), "b": torch.zeros(40, 100, dtype=torch.float64)}

    def noise(key):
        tx = bx.add_noise(1.0, 0.0, key)
        state, rows = tx.init(params), []
        for _ in range(10):
            updates, state = tx.update(params, state, params)
            rows += [updates["a"], updates["b"].flatten()]
        return torch.stack(rows)

    rows = vmap(noise, randomness="error")(torch.arange(20))
    torch.testing.assert_close(rows[7], noise(torch.tensor(7)), rtol=0, atol=0)
    correlations = torch.corrcoef(rows.flatten(0, 1)) - torch.eye(400)
    assert float(correlations.abs().max()) < 5.5 / 4000**0.5
    assert stats.kstest(rows.flatten().numpy(), "norm").pvalue > 1e-3
    beside = torch.corrcoef(torch.stack([rows[..., 1:].flatten(), rows[..., :-1].flatten()]))[0, 1]
    assert abs(float(beside)) < 4 / rows.numel() ** 0.5


def test_the_variance_decays():
    params = torch.zeros(50_000, dtype=torch.float64)
    tx = bx.add_noise(4.0, 1.0, key=3)
    state = tx.init(params)
    for step in range(1, 5):
        updates, state = tx.update(params, state, params)
        assert float(updates.var()) == pytest.approx(4 / step, rel=0.05)


def test_compiled_and_packed_noise_is_the_same():
    params = {"a": torch.zeros(5), "b": torch.zeros(2, 3)}
    tx = bx.add_noise(1.0, 0.5, key=3)
    expected, _ = tx.update(params, tx.init(params), params)
    compiled = torch.compile(tx.update, fullgraph=True, backend="aot_eager")  # generated code is a law's concern
    packed = bx.packed(tx)
    for updates, _ in (
        compiled(params, tx.init(params), params),
        packed.update(params, packed.init(params), params),
    ):
        for name, value in expected.items():
            torch.testing.assert_close(updates[name], value, rtol=1e-5, atol=1e-6)


def test_a_key_is_a_seed_and_a_seed_may_be_a_tensor():
    key = make_key(2**40 + 5)
    assert key.tolist() == [256, 5]
    assert make_key(key) is key
    assert make_key(torch.tensor(2**40 + 5)).tolist() == [256, 5]
    assert torch.equal(make_key(torch.tensor(-3)), make_key(-3))
    assert make_key(7, torch.device("meta")).device.type == "meta"


def test_a_bad_seed_is_named():
    with pytest.raises(TypeError, match=r"float32 of shape \(\)"):
        bx.add_noise(1.0, 0.5, torch.tensor(0.5)).init(torch.zeros(1))
    for seed in (torch.tensor([1, 2, 3]), torch.tensor(1j), torch.zeros(2)):
        with pytest.raises(TypeError, match=r"a seed is an integer or a key of two words, got "):
            make_key(seed)


def test_the_order_of_a_dict_does_not_matter():
    names = ["b", "a", "c"]
    first = {name: torch.zeros(3) for name in names}
    second = {name: torch.zeros(3) for name in sorted(names)}
    tx = bx.add_noise(1.0, 0.5)
    one, other = (tx.update(params, tx.init(params), params)[0] for params in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in names)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_normal_numbers_have_the_dtype_that_is_asked_for(dtype):
    numbers = normal(make_key(0), (5,), dtype)
    assert numbers.dtype == dtype
    if dtype != torch.float64:
        assert torch.equal(numbers, normal(make_key(0), (5,), torch.float32).to(dtype))


class _Pair:
    """A node that only torch's pytrees know."""

    def __init__(self, one, other):
        self.parts = one, other


pytree.register_pytree_node(_Pair, lambda pair: (list(pair.parts), None), lambda parts, _: _Pair(*parts))


def test_noise_of_nodes_that_are_registered_with_torch_alone():
    tx = bx.add_noise(1.0, 0.0, 0)
    tensors = [torch.zeros(3), torch.zeros(3)]
    pair, both = _Pair(*tensors), tuple(tensors)
    updates, _ = tx.update(pair, tx.init(pair), pair)
    expected, _ = tx.update(both, tx.init(both), both)
    assert all(torch.equal(one, other) for one, other in zip(updates.parts, expected, strict=True))
