"""A transformation as a torch optimizer: the functional loop's numbers, and all that torch asks of an optimizer."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils._pytree import tree_leaves, tree_map

import boxopt as bx
from boxopt.run import torch_optimizer

BOX = bx.Box(-0.2, 0.25)
X, Y = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 1, 16)[:, None]


def make_model(dtype=None):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    with torch.no_grad():
        for param in model.parameters():
            param.clamp_(-0.2, 0.25)
    return model


def loss_of(model, scale=1.0):
    return scale * functional.mse_loss(model(X.to(next(model.parameters()).dtype)).float(), Y)


def train(model, optimizer, steps, scheduler=None):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


def functional_losses(model, tx, steps):
    """The loop by hand; returns the losses and the parameters."""
    params = {name: param.detach().clone() for name, param in model.named_parameters()}
    state, losses = tx.init(params), []

    def loss(params):
        prediction = torch.func.functional_call(model, params, X.to(next(model.parameters()).dtype))
        return functional.mse_loss(prediction.float(), Y)

    for _ in range(steps):
        gradients, value = torch.func.grad_and_value(loss)(params)
        updates, state = tx.update(gradients, state, params)
        params = bx.apply_updates(params, updates)
        losses.append(value.item())
    return losses, params


def assert_same_params(model, params, **tolerance):
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.detach(), params[name], **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.fixture
def quick_compile(monkeypatch):
    """What a compiled step that writes over its arguments does, without compiling: see test_compile.py for that."""

    def overwriting(step, donate_argnums):
        assert donate_argnums == (0, 1)

        def call(params, state, *rest):
            for old, new in zip(tree_leaves((params, state)), tree_leaves(step(params, state, *rest)), strict=True):
                assert (old.shape, old.dtype) == (new.shape, new.dtype)
                old.copy_(new)
            return tree_map(torch.Tensor.detach, (params, state))

        return call

    monkeypatch.setattr(torch_optimizer, "compile", overwriting)


MAKERS = {
    "adam, projected": lambda lr: bx.projected(bx.adam(lr), BOX),
    "clipped sgd": lambda lr: bx.chain(bx.clip_by_global_norm(0.1), bx.sgd(lr, momentum=0.9), bx.project(BOX)),
    "adafactor": lambda lr: bx.chain(bx.adafactor(lr, min_dim_size_to_factor=2), bx.project(BOX)),
    "injected": lambda lr: bx.inject_hyperparams(bx.adamw)(learning_rate=lr),
    "noise": lambda lr: bx.chain(bx.add_noise(0.1, 0.5, 7), bx.scale(-lr), bx.project(BOX)),
    "lookahead": lambda lr: bx.lookahead(bx.chain(bx.adam(lr), bx.project(BOX)), 3, 0.5),
    "packed": lambda lr: bx.packed(bx.chain(bx.adam(lr), bx.project(BOX))),
    "by path": lambda lr: bx.projected(bx.lion(lr), bx.sets.ByPath({"*.weight": BOX, "2.bias": bx.sets.Simplex()})),
}


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_the_functional_loop_to_the_bit(name):
    model = make_model()
    losses, params = functional_losses(model, MAKERS[name](0.03), 12)
    optimizer = bx.TorchOptimizer(model.named_parameters(), MAKERS[name], lr=0.03)
    assert train(model, optimizer, 12) == losses
    assert_same_params(model, params)


def test_it_is_torchs_own_with_a_clamp():
    ours, theirs = make_model(), make_model()
    expected = torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=0.1)

    def clamp(optimizer, args, kwargs):
        for param in theirs.parameters():
            param.data.clamp_(-0.2, 0.25)

    expected.register_step_post_hook(clamp)
    optimizer = bx.TorchOptimizer(ours.parameters(), bx.adamw, lr=0.05, weight_decay=0.1, within=BOX)
    assert train(ours, optimizer, 20) == pytest.approx(train(theirs, expected, 20), rel=1e-5)
    assert bx.violation(BOX, dict(ours.named_parameters())) == 0
    assert bx.active(BOX, dict(ours.named_parameters()))["0.bias"].any()


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda n: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=9),
}
NOT_SCHEDULERS = {"LRScheduler", "_LRScheduler", "Optimizer", "Counter"}


def test_every_scheduler_of_torchs_is_tried():
    found = {
        name
        for name, value in vars(lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, lr_scheduler.LRScheduler)
    }
    assert found - NOT_SCHEDULERS == set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name):
    """Against torch's SGD: rates, and momenta where they are cycled too, are read on each step."""
    ours, theirs = make_model(), make_model()
    losses = []
    for model, optimizer in (
        (theirs, torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)),
        (ours, bx.TorchOptimizer(ours.parameters(), lambda lr, momentum: bx.sgd(lr, momentum), lr=0.1, momentum=0.9)),
    ):
        scheduler = SCHEDULERS[name](optimizer)
        if name == "ReduceLROnPlateau":
            scheduler.step = partial(scheduler.step, 1.0)
        losses.append(train(model, optimizer, 8, scheduler))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_groups_have_hyperparameters_of_their_own():
    ours, theirs = make_model(), make_model()
    losses = []
    for model, kind in (
        (theirs, torch.optim.Adam),
        (ours, lambda groups, lr, betas: bx.TorchOptimizer(groups, MAKERS_OF_BETAS, lr=lr, betas=betas)),
    ):
        optimizer = kind([{"params": list(model[0].parameters()), "lr": 0.02}], lr=0.1, betas=(0.8, 0.99))
        losses.append(train(model, optimizer, 3))
        optimizer.add_param_group({"params": model[2].weight, "betas": (0.5, 0.9)})
        losses.append(train(model, optimizer, 3))
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    assert losses[3] == pytest.approx(losses[1], rel=1e-5)


def MAKERS_OF_BETAS(lr, betas):
    return bx.adam(lr, *betas)


@pytest.mark.parametrize("fused", [False, True])
def test_parameters_without_a_gradient_stay_and_those_that_thaw_begin_anew(fused, quick_compile):
    ours, theirs = make_model(), make_model()
    losses, found = [], []
    for model, kind in (
        (theirs, torch.optim.Adam),
        (ours, lambda params, lr: bx.TorchOptimizer(params, bx.adam, lr=lr, fused=fused)),
    ):
        model[0].requires_grad_(False)
        optimizer = kind(model.parameters(), lr=0.05)
        losses.append(train(model, optimizer, 4))
        model[0].requires_grad_(True)
        losses[-1] += train(model, optimizer, 4)
        optimizer.zero_grad()
        loss_of(model).backward()
        model[2].weight.grad = None
        before = copy.deepcopy((model[2].weight.detach(), optimizer.state[model[2].weight]))
        optimizer.step()
        after = model[2].weight.detach(), optimizer.state[model[2].weight]
        found.append((before, after))
        losses[-1].append(loss_of(model).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    ((weight, state), (same_weight, same_state)) = found[1]
    assert torch.equal(weight, same_weight)
    assert torch.equal(state["0.mu"], same_state["0.mu"])
    assert same_state["0.count"] == state["0.count"] + 1  # the counter is the group's


def saved(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAKERS)
def test_a_resumed_run_is_the_same_to_the_bit(name, dtype):
    model = make_model(dtype)
    optimizer = bx.TorchOptimizer(model.named_parameters(), MAKERS[name], lr=0.03)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    train(model, optimizer, 4, scheduler)
    files = [saved(thing.state_dict()) for thing in (model, optimizer, scheduler)]
    assert_same_state(files[1], optimizer.state_dict())
    losses = train(model, optimizer, 4, scheduler)
    again = make_model(dtype)
    resumed = bx.TorchOptimizer(again.named_parameters(), MAKERS[name], lr=0.5)
    later = lr_scheduler.ExponentialLR(resumed, 0.9)
    for thing, file in zip((again, resumed, later), files, strict=True):
        thing.load_state_dict(file)
    assert train(again, resumed, 4, later) == losses
    assert_same_params(again, dict(model.named_parameters()))
    assert_same_state(resumed.state_dict(), optimizer.state_dict())


def assert_same_state(one, other):
    assert one["state"].keys() == other["state"].keys()
    for param, entry in one["state"].items():
        assert entry.keys() == other["state"][param].keys()
        for key, value in entry.items():
            expected = other["state"][param][key]
            assert value.dtype == expected.dtype, key
            assert torch.equal(value, expected), key


def test_a_parameter_of_which_nothing_is_remembered_goes_on_with_the_others():
    """It was left out after loading, and began anew without those that a set names along with it."""
    params = {"a": torch.nn.Parameter(torch.zeros(2)), "b": torch.nn.Parameter(torch.zeros(2))}
    set_ = bx.sets.ByPath({"a": bx.Box(-1.0, 1.0), "b": bx.Box(-0.25, 1.0)})
    tx = bx.chain(bx.masked(bx.trace(0.9), "a"), bx.scale(-1.0), bx.project(set_))
    optimizer = bx.TorchOptimizer(params.items(), tx)
    params["a"].grad, params["b"].grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert torch.equal(params["b"], torch.full((2,), -0.25))


def test_frozen_groups_steps_without_gradients_and_parameters_that_come_in_turn():
    """Each is counted from its own beginning, also after loading."""
    params = [torch.nn.Parameter(torch.full((2,), float(k))) for k in range(3)]
    for param in params[:2]:
        param.requires_grad_(False)
    optimizer = bx.TorchOptimizer([{"params": params[:2]}, {"params": params[2:]}], bx.adam, lr=0.1)
    optimizer.step()  # nothing has a gradient
    assert [param[0].item() for param in params] == [0, 1, 2]

    def step(count):
        for param in params[:count]:
            param.grad = torch.ones(2)
        optimizer.step()

    step(1)  # the first alone, then the second too
    step(2)
    counts = [int(optimizer.state[param]["0.count"]) for param in params[:2]]
    assert counts == [2, 1]
    before = [param.detach().clone() for param in params]
    optimizer.load_state_dict(saved(optimizer.state_dict()))
    step(3)
    assert [int(optimizer.state[param]["0.count"]) for param in params] == [3, 2, 1]
    for param, old in zip(params, before, strict=True):
        torch.testing.assert_close(param.detach(), old - 0.1)  # Adam's step for gradients that are always 1


@pytest.mark.parametrize("fused", [False, True])
def test_rates_that_are_tensors_and_settings_that_are_not_numbers(fused, quick_compile):
    """A tensor may be changed in its place; another setting of a group is another step."""
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    rate = torch.tensor(0.5)
    groups = [{"params": params[:1], "nesterov": False}, {"params": params[1:], "nesterov": True}]
    optimizer = bx.TorchOptimizer(groups, bx.sgd, lr=rate, momentum=0.5, fused=fused)
    for size in (0.5, 0.25):
        rate.fill_(size)
        for param in params:
            param.grad = torch.ones(2)
        optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.full((2,), -0.5 - 0.25 * 1.5))
    torch.testing.assert_close(params[1].detach(), torch.full((2,), -0.5 * 1.5 - 0.25 * 1.75))


def test_fused_and_unfused_states_are_one_format(quick_compile):
    model = make_model()
    kinds = [partial(bx.TorchOptimizer, transformation=MAKERS["adam, projected"], lr=0.03, fused=f) for f in (0, 1)]
    optimizer = kinds[0](model.named_parameters())
    train(model, optimizer, 3)
    file, weights = saved(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    losses = train(model, optimizer, 3)
    other = make_model()
    fused = kinds[1](other.named_parameters())
    train(other, fused, 1)
    other.load_state_dict(weights)  # in place, through the views
    fused.load_state_dict(file)
    assert_same_state(fused.state_dict(), file)
    assert train(other, fused, 3) == pytest.approx(losses, rel=1e-6)
    back = kinds[0](make_model().named_parameters())
    back.load_state_dict(saved(fused.state_dict()))
    assert_same_state(back.state_dict(), fused.state_dict())


def test_the_state_of_another_transformation_is_refused_and_nothing_changes():
    model = make_model()
    optimizer = bx.TorchOptimizer(model.named_parameters(), bx.adam, lr=0.03)
    train(model, optimizer, 2)
    before = saved(optimizer.state_dict())
    other = bx.TorchOptimizer(make_model().named_parameters(), MAKERS["clipped sgd"], lr=0.7)
    with pytest.raises(ValueError, match=r"'0\.weight' is another transformation's: expected 0\.count"):
        optimizer.load_state_dict(other.state_dict())
    short = saved(optimizer.state_dict())
    short["state"][3]["0.nu"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"'0\.nu' in the state of parameter '2\.bias' has shape \(2,\)"):
        optimizer.load_state_dict(short)
    assert_same_state(optimizer.state_dict(), before)
    assert optimizer.param_groups[0]["lr"] == 0.03
    train(model, optimizer, 1)


@pytest.mark.parametrize("options", [{}, {"flatten_optimizer_state_dict": True}, {"full_state_dict": True}])
def test_torchs_distributed_state_dicts(options):
    options = StateDictOptions(**options)
    model = make_model()
    kind = partial(bx.TorchOptimizer, transformation=MAKERS["adam, projected"], lr=0.03)
    optimizer = kind(model.named_parameters())
    train(model, optimizer, 3)
    weights, states = copy.deepcopy((model.state_dict(), get_optimizer_state_dict(model, optimizer, options=options)))
    losses = train(model, optimizer, 3)
    again = make_model()
    again.load_state_dict(weights)
    resumed = kind(again.named_parameters())
    set_optimizer_state_dict(again, resumed, states, options=options)
    assert train(again, resumed, 3) == losses
    assert_same_state(resumed.state_dict(), optimizer.state_dict())


def test_hooks_closures_and_the_loss_for_those_that_want_it():
    model = make_model()
    calls = []
    optimizer = bx.TorchOptimizer(model.parameters(), bx.polyak_sgd(1.0), within=BOX)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_state_dict_post_hook(lambda _, found: {**found, "note": 1})
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append(type(o.state[model[0].weight])))

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert calls == ["before", "after"] * 5
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls[-1] is dict
    with pytest.raises(TypeError, match="value"):
        train(model, optimizer, 1)


@pytest.mark.parametrize("fused", [False, True])
def test_copies_and_pickles_go_on_alike(fused, quick_compile):
    model = make_model()
    optimizer = bx.TorchOptimizer(model.named_parameters(), bx.adam, lr=0.03, within=BOX, fused=fused)
    train(model, optimizer, 3)
    pairs = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    losses = train(model, optimizer, 3)
    for pair in pairs:
        assert train(*pair, 3) == losses


def test_states_that_keep_parameters_or_gradients_keep_copies():
    """The functional loop makes new tensors; here parameters are written over, and gradients set to zero in place."""
    for tx in (bx.snapshot("params", lambda params: params), bx.scale_by_optimistic_gradient()):
        param = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = bx.TorchOptimizer([param], bx.chain(tx, bx.scale(-0.5)))
        param.grad = torch.tensor([2.0, 4.0])
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        kept = [value for value in optimizer.state[param].values() if value.shape == param.shape]
        assert any(torch.equal(value, torch.tensor([2.0, 4.0])) for value in kept) or any(
            torch.equal(value, torch.tensor([1.0, 2.0])) for value in kept
        )


class SumsToOne(bx.sets.ConstraintSet):
    """All numbers of all parameters together: their sum is 1."""

    def _gap(self, x):
        return 1 - sum(leaf.sum() for leaf in x.values())

    def project(self, x, step_size=1.0):
        move = self._gap(x) / sum(leaf.numel() for leaf in x.values())
        return {name: leaf + move for name, leaf in x.items()}

    def land(self, params, target, *, strictly=False):
        return {name: target[name] - leaf for name, leaf in params.items()}

    def violation(self, x):
        return self._gap(x).abs()


@pytest.mark.parametrize("fused", [False, True])
def test_a_set_across_parameters(fused, quick_compile):
    model = make_model()

    def make(lr):
        return bx.chain(bx.sgd(lr), bx.project(SumsToOne()))

    losses, params = functional_losses(model, make(0.1), 5)
    optimizer = bx.TorchOptimizer(model.named_parameters(), make, lr=0.1, fused=fused)
    assert train(model, optimizer, 5) == pytest.approx(losses, rel=1e-6)
    assert_same_params(model, params, rtol=1e-5, atol=1e-6)
    assert SumsToOne().violation(dict(model.named_parameters())) < 1e-6


@pytest.mark.parametrize("name", MAKERS)
def test_fused_steps_equal_the_others(name, quick_compile):
    if name == "noise":
        pytest.skip("packed parameters draw other random numbers")
    model, other = make_model(), make_model()
    optimizer = bx.TorchOptimizer(model.named_parameters(), MAKERS[name], lr=0.03)
    fused = bx.TorchOptimizer(other.named_parameters(), MAKERS[name], lr=0.03, fused=True)
    schedulers = [lr_scheduler.ExponentialLR(o, 0.9) for o in (optimizer, fused)]
    assert train(other, fused, 5, schedulers[1]) == pytest.approx(train(model, optimizer, 5, schedulers[0]), rel=1e-5)


def test_fused_steps_compiled_stay_in_the_parameters_memory():
    model, other = make_model(), make_model()
    optimizer = bx.TorchOptimizer(model.named_parameters(), MAKERS["adam, projected"], lr=0.03)
    fused = bx.TorchOptimizer(other.named_parameters(), MAKERS["adam, projected"], lr=0.03, fused=True)
    schedulers = [lr_scheduler.ExponentialLR(o, 0.9) for o in (optimizer, fused)]
    places = [param.data_ptr() for param in other.parameters()]
    graph = loss_of(other)
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses = train(other, fused, 6, schedulers[1])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        graph.backward()
    assert losses == pytest.approx(train(model, optimizer, 6, schedulers[0]), rel=1e-5)
    assert [param.data_ptr() for param in other.parameters()] == places
    assert bx.violation(BOX, dict(other.named_parameters())) == 0
    # Moved by somebody else, they are gathered again.
    before = other[0].weight.data
    other[0].weight.data = before.clone()
    assert train(other, fused, 3) == pytest.approx(train(model, optimizer, 3), rel=1e-5)
    assert other[0].weight.data_ptr() != before.data_ptr()


def test_wrong_use_is_explained():
    model = make_model()
    named = list(model.named_parameters())
    with pytest.raises(TypeError, match="no hyperparameter lr; it has none; give a function"):
        bx.TorchOptimizer(named, bx.adam(0.1), lr=0.1)
    with pytest.raises(TypeError, match="no hyperparameter rate; it has lr, b1, b2"):
        bx.TorchOptimizer(named, bx.adam, rate=0.1)
    with pytest.raises(TypeError, match="learning_rate"):
        bx.TorchOptimizer(named, bx.adam)
    with pytest.raises(ValueError, match=r"a group are called 0\.weight"):
        bx.TorchOptimizer([named[0], ("0.weight", named[1][1])], bx.adam, lr=0.1)
    with pytest.raises(ValueError, match="no leaf matches 'wieght'"):
        bx.TorchOptimizer(named, bx.adam, lr=0.1, within=bx.sets.ByPath({"wieght": BOX}))
    optimizer = bx.TorchOptimizer(named[:2], bx.adam, lr=0.1)
    with pytest.raises(TypeError, match=r"'z'.*dtype torch\.complex64"):
        optimizer.add_param_group({"params": [("z", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))]})
    optimizer.add_param_group({"params": named[2:]})
    assert len(optimizer.param_groups) == 2
    train(model, optimizer, 1)
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        bx.TorchOptimizer(embedding.parameters(), bx.adam, lr=0.1).step()
    with pytest.raises(ValueError, match="parameter 'w' is not contiguous"):
        bx.TorchOptimizer([("w", nn.Parameter(torch.zeros(2, 3).T))], bx.adam, lr=0.1, fused=True)


def test_bound_module():
    model = make_model()
    inside = bx.bound_module(model, {"*.weight": bx.Box(-0.1, 0.1), "2.bias": bx.sets.NonNegative()})
    params = dict(model.named_parameters())
    assert bx.violation(inside, params) == 0
    assert model[0].weight.abs().amax().item() == pytest.approx(0.1)
    free = model[0].bias.detach().clone()
    assert torch.equal(free, make_model()[0].bias)
    groups = [{"params": [(n, p) for n, p in params.items() if n.endswith(kind)]} for kind in ("weight", "bias")]
    optimizer = bx.TorchOptimizer(groups, lambda lr: bx.projected(bx.adam(lr), inside), lr=0.05)
    losses = train(model, optimizer, 10)
    assert losses[-1] < losses[0]
    assert bx.violation(inside, params) == 0
    assert not torch.equal(free, model[0].bias)
    with pytest.raises(ValueError, match=r"no leaf matches '\*\.wieght'"):
        bx.bound_module(model, {"*.wieght": BOX})
    with pytest.raises(ValueError, match=r"no parameter '0', '1', '2', '3'; it has '0\.weight'.*named_parameters"):
        bx.TorchOptimizer(model.parameters(), bx.adam, lr=0.1, within=inside)
    with pytest.raises(ValueError, match=r"leaf '2\.bias'"):
        bx.bound_module(model, {"2.bias": bx.Box(torch.zeros(3), 1.0)})
    assert pickle.loads(pickle.dumps(inside)).names == inside.names


def test_gradients_that_overflow_are_skipped_by_the_scaler():
    model = make_model()
    optimizer = bx.TorchOptimizer(model.named_parameters(), MAKERS["adam, projected"], lr=0.03)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    losses = []
    for scale in (1.0, torch.inf, 1.0, 1.0):
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, scale)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        if scale == torch.inf:
            assert_same_params(model, before[0])
            assert_same_state(optimizer.state_dict(), before[1])
    assert scaler.get_scale() == 2.0**9
    assert losses[3] < losses[2] < losses[0]
    assert bx.violation(BOX, dict(model.named_parameters())) == 0


def make_masters(lr):
    return bx.master_weights(bx.chain(bx.adam(lr), bx.project(BOX)), within=BOX)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_parameters_with_masters(dtype, fused, quick_compile):
    """Steps far below what 16 bits resolve add up in the masters; both stay in the box as stored."""
    model, other = make_model(dtype), make_model(dtype)
    optimizer = bx.TorchOptimizer(model.named_parameters(), make_masters, lr=2e-4, within=BOX, fused=fused)
    plain = bx.TorchOptimizer(other.named_parameters(), bx.adam, lr=2e-4, within=BOX)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=dtype is torch.float16)

    def run(model, optimizer, steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(model)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        return losses

    losses = run(model, optimizer, 200)
    wide = make_model()
    expected = train(wide, bx.TorchOptimizer(wide.named_parameters(), MAKERS["adam, projected"], lr=2e-4), 200)
    coarse = run(other, plain, 200)
    assert abs(losses[-1] - expected[-1]) < 0.1 * abs(coarse[-1] - expected[-1])
    params = dict(model.named_parameters())
    assert {param.dtype for param in params.values()} == {dtype}
    assert bx.violation(BOX, params) == 0
    assert all(bool((p.double() >= -0.2).all() and (p.double() <= 0.25).all()) for p in params.values())
    for param in params.values():
        masters = optimizer.state[param]["masters"]
        assert masters.dtype == torch.float32
        assert bx.violation(BOX, masters) == 0
    # The masters are in the checkpoint, in 32 bits.
    again = make_model(dtype)
    again.load_state_dict(model.state_dict())
    resumed = bx.TorchOptimizer(again.named_parameters(), make_masters, lr=0.5, within=BOX, fused=fused)
    resumed.load_state_dict(saved(optimizer.state_dict()))
    assert run(again, resumed, 5) == run(model, optimizer, 5)


def test_half_precision_gradients_are_unscaled_in_32_bits():
    """A gradient of 2⁻³⁰ is nothing in 16 bits."""
    param = nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = bx.TorchOptimizer([param], bx.master_weights(bx.sgd(2.0**10)))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    scaler.scale((param.float() * 2.0**-30).sum()).backward()
    scaler.step(optimizer)
    assert optimizer.state[param]["masters"].tolist() == [1 - 2.0**-20] * 2
