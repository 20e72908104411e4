"""Training with other people's loops: the losses are those of the functional loop, and the box holds exactly."""

import importlib
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import boxopt as bx
from tests.test_readme import run_as_module

PAGE = (Path(__file__).parent.parent / "docs" / "integrations.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)

RATE, BOX = 0.05, bx.Box(-0.1, 0.15)


def needed(name, *parts):
    """A package, or a skipped test where it, or a part of it, does not import."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = importlib.import_module(name)
            for part in parts:
                getattr(package, part)
            return package
    except (ImportError, RuntimeError) as error:  # a RuntimeError: a torchvision beside it that does not fit torch
        return pytest.skip(f"{name} does not import: {error}")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, y):
        return functional.mse_loss(self.layers(x), y)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_page_prints_what_it_says(number, capsys, monkeypatch, tmp_path):
    for package in ("lightning.pytorch", "transformers", "accelerate"):
        if f"import {package}" in BLOCKS[number]:
            needed(package, *(["Trainer", "GPT2LMHeadModel"] if package == "transformers" else []))
    monkeypatch.chdir(tmp_path)
    run_as_module(BLOCKS[number], "integrations_page")
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")]
    assert printed == re.findall(r"^print\(.*\)  # (.*)$", BLOCKS[number], flags=re.MULTILINE)


def test_names_on_the_page_exist():
    assert all(hasattr(bx, name) for name in re.findall(r"bx\.([A-Za-z_]\w*)", PAGE))


def data():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(24, 3, generator=generator)
    return TensorDataset(x, x[:, :1] - x[:, 1:2] ** 2)


def loader():
    return DataLoader(data(), batch_size=8)


def make(lr, inside):
    return bx.projected(bx.adam(lr), inside, deterministic=False)


def bounded(model):
    """The set of a model's parameters whose weights are in the box, after they have been put there."""
    return bx.bound_module(model, {"*.weight": BOX})


def optimizer_of(model, **options):
    inside = bounded(model)
    return bx.TorchOptimizer(model.named_parameters(), lambda lr: make(lr, inside), lr=RATE, **options)


def losses_by_hand(model, batches, learning_rate=RATE, every=1):
    """The functional loop; ``every`` so many batches a step with the mean of their gradients."""
    inside = bounded(model)
    tx = bx.multi_steps(make(learning_rate, inside), every)
    params = {name: param.detach().clone() for name, param in model.named_parameters()}
    state, losses = tx.init(params), []
    for batch in batches:

        def loss(params, batch=batch):
            output = torch.func.functional_call(model, params, tuple(batch))
            return output.loss if hasattr(output, "loss") else output

        gradients, value = torch.func.grad_and_value(loss)(params)
        updates, state = tx.update(gradients, state, params)
        params = bx.apply_updates(params, updates)
        losses.append(value.item())
    return losses


def assert_in_the_box(model):
    params = {name: param for name, param in model.named_parameters() if name.endswith(".weight")}
    assert params
    assert bx.violation(BOX, params) == 0
    assert any(bool((part != 0).any()) for part in bx.active(BOX, params).values())


def close(losses):
    return pytest.approx(losses, rel=1e-6)


@pytest.fixture
def lightning():
    """A Lightning module with a TorchOptimizer, a schedule and a list of its losses, and a quiet trainer."""
    package = needed("lightning.pytorch")

    class Module(package.LightningModule):
        def __init__(self, **options):
            super().__init__()
            self.net, self.options, self.losses = Net(), options, []

        def training_step(self, batch, index):
            loss = self.net(*batch)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            optimizer = optimizer_of(self.net, **self.options)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def trainer(folder, **options):
        return package.Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )

    return Module, trainer


@pytest.mark.filterwarnings("ignore")
def test_lightning(lightning, tmp_path):
    module_kind, trainer_kind = lightning
    module = module_kind()
    trainer = trainer_kind(tmp_path, max_epochs=4)
    trainer.fit(module, loader())
    rate = bx.exponential_decay(RATE, 1, 0.9)
    assert module.losses == close(losses_by_hand(Net(), list(loader()) * 4, rate))
    assert_in_the_box(module.net)
    # Stopped after two epochs, saved, and resumed: the same to the bit.
    first, second = module_kind(), module_kind()
    trainer = trainer_kind(tmp_path, max_epochs=2)
    trainer.fit(first, loader())
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    trainer_kind(tmp_path, max_epochs=4).fit(second, loader(), ckpt_path=tmp_path / "state.ckpt", weights_only=True)
    assert first.losses + second.losses == module.losses


@pytest.mark.filterwarnings("ignore")
def test_lightning_accumulates_and_runs_in_mixed_precision(lightning, tmp_path):
    module_kind, trainer_kind = lightning
    module = module_kind()
    trainer_kind(tmp_path, max_epochs=4, accumulate_grad_batches=3).fit(module, loader())
    rate = bx.exponential_decay(RATE, 1, 0.9)
    assert module.losses == close(losses_by_hand(Net(), list(loader()) * 4, rate, every=3))
    mixed = module_kind()
    trainer_kind(tmp_path, max_epochs=4, precision="bf16-mixed").fit(mixed, loader())
    assert mixed.losses[-1] < mixed.losses[0]
    assert mixed.net.layers[0].weight.dtype == torch.float32
    assert_in_the_box(mixed.net)


@pytest.fixture
def transformers():
    return needed("transformers", "GPT2LMHeadModel", "Trainer")


def tiny_gpt(transformers):
    torch.manual_seed(6)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel(config)


def sentences():
    tokens = torch.randint(0, 32, (6, 8), generator=torch.Generator().manual_seed(7))
    return [{"input_ids": row, "labels": row} for row in tokens]


def hugging_face(transformers, folder, optimizer_of=optimizer_of, **options):
    """The losses and the trained model of a Trainer."""
    model = tiny_gpt(transformers)
    losses = []
    model.register_forward_hook(lambda module, args, output: losses.append(output.loss.item()))
    arguments = transformers.TrainingArguments(
        folder,
        max_steps=8,
        per_device_train_batch_size=6,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="steps",
        save_steps=4,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=sentences(), optimizers=(optimizer_of(model), None))
    trainer.train(**options)
    return losses, model


@pytest.mark.filterwarnings("ignore")
def test_hugging_face(transformers, tmp_path):
    losses, model = hugging_face(transformers, tmp_path)
    batch = torch.stack([row["input_ids"] for row in sentences()])

    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = tiny_gpt(transformers)

        def forward(self, tokens):
            # The trainer divides by the number of labels, of which the model shifts the first of each row away.
            return self.model(input_ids=tokens, labels=tokens, num_items_in_batch=tokens.numel())

    assert losses == close(losses_by_hand(Language(), [(batch,)] * 8))
    assert_in_the_box(model)
    resumed, again = hugging_face(transformers, tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed == losses[4:]
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_makes_the_optimizer(transformers, tmp_path):
    """Its groups have a weight decay of their own: none for biases and norms."""
    model = tiny_gpt(transformers)
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=3, weight_decay=0.5, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no"
    )
    options = {"transformation": bx.adamw, "lr": RATE, "within": BOX}
    trainer = transformers.Trainer(
        model, arguments, train_dataset=sentences(), optimizer_cls_and_kwargs=(bx.TorchOptimizer, options)
    )
    trainer.train()
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.5, 0.0]
    assert bx.violation(BOX, dict(model.named_parameters())) == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", [1, 3])
def test_accelerate(every, tmp_path):
    accelerate = needed("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=every)
    model = Net()
    optimizer = optimizer_of(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, loader(), scheduler)

    def epoch():
        losses = []
        for x, y in batches:
            with accelerator.accumulate(model):
                loss = model(x, y)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return losses

    losses = [loss for _ in range(6) for loss in epoch()]
    rate = bx.exponential_decay(RATE, 1, 0.9)
    assert losses == close(losses_by_hand(Net(), list(loader()) * 6, rate, every=every))
    assert_in_the_box(model)
    accelerator.save_state(tmp_path)
    expected = epoch()
    accelerator.load_state(tmp_path)
    assert epoch() == expected
