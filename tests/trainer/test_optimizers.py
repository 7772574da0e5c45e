"""Proves that each optimizer's name does what it says: it moves weights, resumes bit for bit, rounds without bias,
and steps during backward as it would after it."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch")
import torch.multiprocessing as mp  # noqa: E402

from clusterft_trainer.config import Learn, TrainConfig  # noqa: E402
from clusterft_trainer.config.learn import (  # noqa: E402
    FUSABLE,
    JOINED,
    NO_BETAS,
    NO_EPS,
    ROUNDS_ITSELF,
    SHARDED,
    OptimizerName,
)
from clusterft_trainer.engine import optimizers, rounding, stretches  # noqa: E402
from clusterft_trainer.engine.optimizer_state import States  # noqa: E402
from clusterft_trainer.engine.stretches import FusedBackward, InStretches  # noqa: E402
from clusterft_trainer.errors import ConfigError, RunError  # noqa: E402

pytestmark = pytest.mark.trainer

NAMES = get_args(OptimizerName)
GPU_ONLY = {"paged-adamw-8bit"}
ON_CPU = [name for name in NAMES if name not in GPU_ONLY]
FUSED = sorted(FUSABLE - GPU_ONLY)
ROUNDED = sorted((FUSABLE | ROUNDS_ITSELF) - GPU_ONLY)
RATES = {"prodigy": 0.9, "schedule-free-adamw": 1e-2}


@pytest.fixture(autouse=True)
def eager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torchao compiles its step for seconds; the arithmetic is the same without."""
    if "compiled" not in request.node.name:
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(torch.nn.Module):
    """A weight of four dimensions, two of which one is long enough to be quantised, and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 8, 3, padding=1)
        self.wide = torch.nn.Linear(128, 64)
        self.narrow = torch.nn.Linear(64, 3)

    def forward(self, x: Any) -> Any:
        return self.narrow(torch.nn.functional.silu(self.wide(self.conv(x).flatten(1))))


def net(dtype: Any = torch.float32, device: str = "cpu") -> Any:
    torch.manual_seed(7)
    return Net().to(device=device, dtype=dtype)


def learning(name: str, **optimizer: Any) -> Learn:
    body = {"unet": {"rate": RATES.get(name, 1e-3)}, "optimizer": {"name": name, **optimizer}}
    return Learn.model_validate(body)


def groups_of(model: Any, rate: float) -> list[dict[str, Any]]:
    first = {"params": list(model.conv.parameters()), "lr": rate, "base": rate, "name": "unet"}
    rest = [*model.wide.parameters(), *model.narrow.parameters()]
    return [first, {"params": rest, "lr": rate / 2, "base": rate / 2, "name": "text_encoder_1"}]


def built(model: Any, name: str, device: str = "cpu", offload: bool = False, **settings: Any) -> Any:
    learn = learning(name, **settings)
    weights = "bf16" if model.conv.weight.dtype is torch.bfloat16 else "fp32"
    groups = groups_of(model, learn.unet.rate)  # type: ignore[union-attr]
    return optimizers.build(groups, learn, device=device, offload=offload, weights=weights)


def train(model: Any, optimizer: Any, first: int, last: int) -> None:
    """Steps first..last, each with its own data, rate and seed, as the trainer has them."""
    for step in range(first, last + 1):
        torch.manual_seed(1000 + step)
        optimizers.set_rates(optimizer.param_groups, 1 / step)
        like = model.conv.weight
        x = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(step)).to(like.device, like.dtype)
        (model(x).float() - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def saved(optimizer: Any, weights: list[Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Through plain tensors of the host, as a file would hold them."""

    def plain(values: dict[str, Any]) -> dict[str, Any]:
        found = {k: v.detach().cpu().clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        assert all(type(v) in (torch.Tensor, float, int) for v in found.values()), found
        return found

    states = States(optimizer)
    return [(plain(states.elements(w)), plain(states.others(w))) for w in weights]


def resumed(name: str, dtype: Any, device: str = "cpu", **options: Any) -> tuple[Any, Any]:
    """Five steps at once, and three, a restart and two more."""
    whole = net(dtype, device)
    train(whole, built(whole, name, device, **options), 1, 5)
    begun = net(dtype, device)
    optimizer = built(begun, name, device, **options)
    train(begun, optimizer, 1, 3)
    state = saved(optimizer, list(begun.parameters()))
    again = net(dtype, device)
    again.load_state_dict(copy.deepcopy(begun.state_dict()))
    fresh = built(again, name, device, **options)
    states = States(fresh)
    for weight, (elements, others) in zip(again.parameters(), state, strict=True):
        assert all(value.shape == weight.shape for value in elements.values())
        states.load(weight, elements, others)
    assert saved(fresh, list(again.parameters()))[2][1].keys() == state[2][1].keys()
    train(again, fresh, 4, 5)
    return whole, again


# ---- every name


@pytest.mark.parametrize("name", ON_CPU)
def test_a_step_moves_every_weight_against_its_gradient(name: str) -> None:
    model, before = net(), net()
    optimizer = built(model, name)
    train(model, optimizer, 1, 1)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    x = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    assert (model(x) - 1).square().mean() < (before(x) - 1).square().mean()
    assert [group["name"] for group in optimizer.param_groups] == ["unet", "text_encoder_1"]


@pytest.mark.parametrize("name", ON_CPU)
def test_a_restart_changes_no_bit(name: str) -> None:
    whole, again = resumed(name, torch.float32)
    assert same(whole, again)


def test_prodigy_takes_its_estimate_along() -> None:
    """It grows late, so a short run would not tell."""
    whole, again = net(), net()
    first, second = built(whole, "prodigy"), built(again, "prodigy")
    train(whole, first, 1, 30)
    estimate = first.param_groups[0]["d"]
    assert estimate > 10 * first.param_groups[0]["d0"]
    again.load_state_dict(whole.state_dict())
    states = States(second)
    for weight, (elements, others) in zip(again.parameters(), saved(first, list(whole.parameters())), strict=True):
        states.load(weight, elements, others)
    assert second.param_groups[1]["d"] == estimate
    train(whole, first, 31, 33)
    train(again, second, 31, 33)
    assert same(whole, again)


@pytest.mark.parametrize("name", ROUNDED)
def test_a_restart_changes_no_bit_of_rounded_weights(name: str) -> None:
    whole, again = resumed(name, torch.bfloat16)
    assert same(whole, again)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "came", "lion-8bit"])
def test_a_restart_changes_no_bit_under_fused_backward(name: str) -> None:
    whole, again = resumed(name, torch.bfloat16, fused_backward=True)
    assert same(whole, again)


@pytest.mark.long
def test_the_optimizer_on_the_host_resumes_bit_for_bit_and_agrees_with_adamw() -> None:
    whole, again = resumed("adamw", torch.float32, offload=True)
    assert same(whole, again)
    torchs = net()
    train(torchs, built(torchs, "adamw"), 1, 5)
    for a, b in zip(whole.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.long
def test_a_compiled_step_resumes_bit_for_bit() -> None:
    whole, again = resumed("ao-adamw-8bit", torch.bfloat16)
    assert same(whole, again)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_restart_on_a_gpu_changes_no_bit_compiled(name: str, dtype: Any) -> None:
    if dtype is torch.bfloat16 and name not in FUSABLE | ROUNDS_ITSELF:
        pytest.skip("refused by the settings")
    torch.use_deterministic_algorithms(True, warn_only=True)
    whole, again = resumed(name, dtype, "cuda")
    assert same(whole, again)


@pytest.mark.parametrize("name", ON_CPU)
def test_the_state_of_elements_has_the_same_names_for_every_weight(name: str) -> None:
    model = net()
    optimizer = built(model, name)
    train(model, optimizer, 1, 1)
    assert len({frozenset(elements) for elements, _ in saved(optimizer, list(model.parameters()))}) == 1


@pytest.mark.parametrize("name", ON_CPU)
def test_a_rate_of_nothing_moves_nothing(name: str) -> None:
    model, before = net(), net()
    optimizer = built(model, name)
    optimizers.set_rates(optimizer.param_groups, 0.0)
    model(torch.ones(1, 4, 4, 4)).sum().backward()
    optimizer.step()
    assert same(model, before)


@pytest.mark.parametrize("name", sorted(SHARDED))
def test_what_may_be_cut_anywhere_moves_pieces_as_it_moves_the_whole(name: str) -> None:
    start, grads = torch.randn(100), torch.randn(4, 100)
    whole = torch.nn.Parameter(start.clone())
    pieces = [torch.nn.Parameter(start[:37].clone()), torch.nn.Parameter(start[37:].clone())]

    def optimizer(weights: list[Any]) -> Any:
        groups = [{"params": weights, "lr": 1e-2, "base": 1e-2, "name": "unet"}]
        return optimizers.build(groups, learning(name), device="cpu")

    one, two = optimizer([whole]), optimizer(pieces)
    for grad in grads:
        whole.grad, pieces[0].grad, pieces[1].grad = grad.clone(), grad[:37].clone(), grad[37:].clone()
        one.step()
        two.step()
    torch.testing.assert_close(whole.data, torch.cat([p.data for p in pieces]), atol=1e-7, rtol=1e-6)


# ---- settings


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_know_which_class_has_betas_and_eps(name: str) -> None:
    library = optimizers._LIBRARIES[name]
    kind = getattr(sys.modules.get(library.module) or __import__(library.module, fromlist=["x"]), library.name)
    has = inspect.signature(kind).parameters
    assert ("betas" in has and len(has["betas"].default) == 2) == (name not in NO_BETAS)
    assert ("eps" in has and isinstance(has["eps"].default, float)) == (name not in NO_EPS)
    assert "weight_decay" in has and set(library.settings) <= set(has)


@pytest.mark.parametrize("name", ON_CPU)
def test_betas_eps_and_decay_reach_the_library(name: str) -> None:
    given: dict[str, Any] = {"betas": (0.8, 0.95)} if name not in NO_BETAS else {}
    given |= {"eps": 1e-5} if name not in NO_EPS else {}
    optimizer = built(net(), name, **given)
    steps = (
        [s.group for s in optimizer.stretches] if isinstance(optimizer, InStretches) else optimizer.param_groups
    )
    for group in steps:
        assert {key: group[key] for key in given} == given and group["weight_decay"] == 0.01


BODY: dict[str, Any] = {
    "model": "builtin:tiny",
    "output": {"name": "x"},
    "data": {"sources": [{"builtin": "shapes"}], "resolution": 64},
    "engine": {"kind": "ddp"},
    "steps": 5,
}


@pytest.mark.parametrize(
    ("learn", "why"),
    [
        ({"optimizer": {"name": "adafactor", "betas": (0.9, 0.99)}}, "betas: adafactor has no pair"),
        ({"optimizer": {"name": "came", "betas": (0.9, 0.99)}}, "betas: came has no pair"),
        ({"optimizer": {"name": "lion", "eps": 1e-8}}, "eps: lion has none"),
        ({"optimizer": "prodigy"}, "prodigy finds the rate itself"),
        ({"optimizer": "schedule-free-adamw", "ema": {}}, "keeps a running mean itself"),
        ({"optimizer": "schedule-free-adamw", "schedule": "cosine"}, "brings its own"),
        ({"optimizer": {"name": "prodigy", "fused_backward": True}, "clip": None}, "steps all tensors together"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(learn: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        TrainConfig.model_validate(BODY | {"learn": {"unet": {"rate": 1e-4}} | learn})


def test_settings_that_the_library_refuses_are_named() -> None:
    with pytest.raises(ConfigError, match="schedule-free-adamw refuses its settings: .*beta"):
        built(net(), "schedule-free-adamw", betas=(0.0, 0.99))


@pytest.mark.parametrize(
    ("name", "module"),
    [("adamw-8bit", "bitsandbytes"), ("came", "pytorch_optimizer"), ("ao-adamw-4bit", "torchao")],
)
def test_a_missing_library_is_named_with_the_way_to_get_it(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for found in [m for m in sys.modules if m == module or m.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, found)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"{name} comes from the package {module}.*image.pip"):
        built(net(), name)


def test_a_library_that_fails_in_its_first_step_is_found_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    def broken(self: Any, closure: Any = None) -> None:
        raise RuntimeError("Configured CUDA binary not found")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", broken)
    with pytest.raises(ConfigError, match="binary not found"):
        built(net(), "adamw-8bit")


def test_torchao_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="no C[+][+] compiler"):
        built(net(), "ao-adamw-8bit")


def test_the_optimizer_on_the_host_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.ops.op_builder import CPUAdamBuilder

    def fails(self: Any, verbose: bool = True) -> None:
        raise RuntimeError("Ninja is required")

    monkeypatch.setattr(CPUAdamBuilder, "load", fails)
    with pytest.raises(ConfigError, match=r"engine.offload: .*Ninja is required.*offload: none"):
        built(net(), "adamw", offload=True)


# ---- rounding


def rounded(values: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, generator=generator)
    return rounding.round_stochastically_(values.clone(), noise)


def test_rounding_is_right_on_average_and_goes_to_a_neighbour() -> None:
    values = torch.tensor([1.001, -1.001, 3.14159, -2.71828e-20, 1.17e38, 0.0])
    many = values.repeat(200_000, 1)
    found = rounded(many, 3)
    assert torch.equal(found, found.bfloat16().float())
    mean, gap = found.double().mean(0), (found.double().max(0)[0] - found.double().min(0)[0])
    # the mean of n draws is within five of its own deviations, which are at most gap / 2 / sqrt(n)
    assert ((mean - values.double()).abs() <= 5 * gap / 2 / math.sqrt(len(many))).all()
    assert (gap[:5] > 0).all() and (gap <= values.double().abs() / 128).all()


def test_what_bfloat16_holds_is_not_moved_and_what_is_no_number_stays() -> None:
    exact = torch.randn(10_000).bfloat16().float()
    assert torch.equal(rounded(exact, 1), exact)
    odd = torch.tensor([math.inf, -math.inf, math.nan, -math.nan])
    odd = torch.cat([odd, torch.tensor([0x7FFFFFFF, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)])
    for seed in range(50):
        found = rounded(odd, seed)
        assert found[0] == math.inf and found[1] == -math.inf and found[2:].isnan().all()


@pytest.mark.parametrize("name", ["adamw", "lion", "adamw-8bit"])
def test_small_updates_add_up_where_the_nearest_number_would_lose_them(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(8192, dtype=torch.bfloat16))
    groups = [{"params": [weight], "lr": 1e-4, "base": 1e-4, "name": "unet"}]
    learn = Learn.model_validate({"unet": {"rate": 1e-4}, "optimizer": name, "weight_decay": 0.0})
    optimizer = optimizers.build(groups, learn, device="cpu", weights="bf16")
    nearest = torch.ones(8192, dtype=torch.bfloat16)
    for step in range(100):
        torch.manual_seed(step)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        nearest -= 1e-4
    assert torch.equal(nearest, torch.ones_like(nearest))
    assert weight.float().mean().item() == pytest.approx(1 - 100 * 1e-4, abs=2e-4)


def test_state_is_full_and_copies_are_gone_after_the_step() -> None:
    model = net(torch.bfloat16)
    optimizer = built(model, "adamw")
    assert isinstance(optimizer, InStretches)
    train(model, optimizer, 1, 2)
    for weight, stretch in optimizer.of.items():
        assert weight.dtype is torch.bfloat16 and stretch.target.numel() == 0 and stretch.target.grad is None
        assert {v.dtype for v in optimizer.state_of(weight).values()} == {torch.float32}


def test_rounding_does_not_depend_on_order_or_on_what_else_is_drawn() -> None:
    like = torch.zeros(1000)
    torch.manual_seed(5)
    noise = rounding.Noise()
    forward = [noise.bits(place, like) for place in (0, 1)]
    torch.manual_seed(5)
    torch.randn(17)
    noise = rounding.Noise()
    backward = [noise.bits(place, like) for place in (1, 0)]
    assert torch.equal(forward[0], backward[1]) and torch.equal(forward[1], backward[0])
    assert not torch.equal(forward[0], forward[1])


def test_two_steps_with_the_same_random_numbers_are_refused() -> None:
    model = net(torch.bfloat16)
    optimizer = built(model, "adamw")
    torch.manual_seed(1)
    model(torch.ones(1, 4, 4, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    with pytest.raises(RunError, match="same random numbers"):
        optimizer.step()


# ---- weights that are stepped as one


SIZES = [(5000,), (8192,), (300,), (70, 70), (4096,), (4097,), ()]


def loose(lengths: Any = SIZES) -> list[Any]:
    torch.manual_seed(3)
    return [torch.nn.Parameter(torch.randn(size)) for size in lengths]


def optimizer_of(weights: list[Any], name: str) -> Any:
    groups = [{"params": weights, "lr": 1e-3, "base": 1e-3, "name": "unet"}]
    return optimizers.build(groups, learning(name, fused_backward=True), device="cpu")


def moved(weights: list[Any], optimizer: Any, first: int, last: int, without: int = -1) -> None:
    for step in range(first, last + 1):
        generator = torch.Generator().manual_seed(step)
        losses = [(w * torch.randn(w.shape, generator=generator)).sum() for w in weights]
        torch.stack([loss for i, loss in enumerate(losses) if i != without]).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", sorted(JOINED - GPU_ONLY))
def test_joined_weights_get_the_bits_that_each_would_get_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together, alone = loose(), loose()
    one = optimizer_of(together, name)
    assert len(one.stretches) == (2 if name.endswith("8bit") else 1)
    monkeypatch.setattr(stretches, "LENGTH", 1)
    other = optimizer_of(alone, name)
    assert len(other.stretches) == len(SIZES)
    moved(together, one, 1, 4)
    moved(alone, other, 1, 4)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    for a, b in zip(saved(one, together), saved(other, alone), strict=True):
        for mine, theirs in zip(a, b, strict=True):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(theirs[k])) for k, v in mine.items())


@pytest.mark.parametrize("name", sorted(JOINED - GPU_ONLY))
@pytest.mark.parametrize("lengths", [(1, stretches.LENGTH), (stretches.LENGTH, 9000)])
def test_a_checkpoint_does_not_know_which_weights_were_joined(
    name: str, lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "LENGTH", lengths[0])
    whole = loose()
    first = optimizer_of(whole, name)
    moved(whole, first, 1, 2)
    state, again = saved(first, whole), [torch.nn.Parameter(w.detach().clone()) for w in whole]
    moved(whole, first, 3, 4)
    monkeypatch.setattr(stretches, "LENGTH", lengths[1])
    second = optimizer_of(again, name)
    for weight, (elements, others) in zip(again, state, strict=True):
        States(second).load(weight, elements, others)
    moved(again, second, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


@pytest.mark.parametrize("name", sorted(JOINED - GPU_ONLY))
def test_a_weight_that_took_no_part_is_stepped_with_a_gradient_of_nothing(name: str) -> None:
    some, every = loose(), loose()
    one, other = optimizer_of(some, name), optimizer_of(every, name)
    moved(some, one, 1, 2)
    moved(every, other, 1, 2)
    moved(some, one, 3, 3, without=1)
    hook = every[1].register_hook(torch.zeros_like)
    moved(every, other, 3, 3)
    hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(some, every, strict=True))


# ---- fused backward


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_steps_during_backward_are_those_after_it_bit_for_bit(name: str, dtype: Any) -> None:
    fused, ordinary = net(dtype), net(dtype)
    train(fused, built(fused, name, fused_backward=True), 1, 4)
    train(ordinary, built(ordinary, name), 1, 4)
    assert same(fused, ordinary)


@pytest.mark.parametrize(("length", "alive"), [(1, 1), (stretches.LENGTH, 4)])
def test_gradients_of_one_stretch_live_at_a_time_and_none_is_left(
    length: int, alive: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "LENGTH", length)
    model = net()
    most = 0

    def count(_: Any) -> None:
        nonlocal most
        most = max(most, sum(weight.grad is not None for weight in model.parameters()))

    for weight in model.parameters():  # before the optimizer's own hooks, so that the gradient is still there
        weight.register_post_accumulate_grad_hook(count)
    optimizer = built(model, "adamw", fused_backward=True)
    train(model, optimizer, 1, 2)
    assert most == alive and all(weight.grad is None for weight in model.parameters())


def test_the_norm_of_forgotten_gradients_is_known() -> None:
    fused, ordinary = net(), net()
    optimizer = built(fused, "adamw", fused_backward=True)
    for model in (fused, ordinary):
        model(torch.ones(1, 4, 4, 4)).sum().backward()
    expected = torch.nn.utils.clip_grad_norm_(ordinary.parameters(), math.inf)
    assert isinstance(optimizer, FusedBackward)
    assert optimizer.take_norm() == pytest.approx(float(expected), rel=1e-6)
    assert optimizer.take_norm() == 0.0


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    for name, dtype, in_flight in CASES:
        model = net(dtype)
        optimizer = built(model, "adamw", fused_backward=True)
        assert isinstance(optimizer, FusedBackward)
        optimizer._most = in_flight
        for step in range(1, 5):
            torch.manual_seed(1000 + step)
            optimizers.set_rates(optimizer.param_groups, 1 / step)
            x = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(step))
            (model(x[rank::2].to(dtype)).float() - 1).square().mean().backward()
            assert bool(optimizer._pending) == (in_flight > 0)
            optimizer.step()
            assert all(weight.grad is None for weight in model.parameters())
        torch.save(list(model.parameters()), f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()
    del optimizer, model
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), (
        threads
    )  # one that is left may abort the process at its end


CASES = [
    ("one-by-one", torch.float32, 0),
    ("in-flight", torch.float32, 1 << 20),
    ("rounded", torch.bfloat16, 1 << 20),
]


def test_two_ranks_move_as_one_process_with_both_halves(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    for name, dtype, _ in CASES:
        one, two = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        alone = net(dtype)
        train(alone, built(alone, "adamw"), 1, 4)
        for a, b in zip(one, alone.parameters(), strict=True):
            # rounded weights may fall to either neighbour where the gradients differ in their last bit
            torch.testing.assert_close(a, b, atol=1e-6 if dtype is torch.float32 else 4e-3, rtol=0)


# ---- averaged weights, and the words of checkpoints


def test_averaged_weights_are_seen_inside_and_the_trained_ones_are_back_to_the_bit() -> None:
    model = net()
    optimizer = built(model, "schedule-free-adamw")
    train(model, optimizer, 1, 3)
    trained = copy.deepcopy(model)
    with optimizers.averaged(optimizer):
        assert not same(model, trained)
        z = States(optimizer).elements(model.wide.weight)["z"]
        mean = trained.wide.weight + (z - trained.wide.weight) * (1 - 1 / 0.9)
        torch.testing.assert_close(model.wide.weight, mean, atol=1e-6, rtol=1e-5)
        with pytest.raises(RuntimeError, match="averaged ones"):
            States(optimizer).others(model.wide.weight)
    assert same(model, trained)
    undisturbed = net()
    train(undisturbed, built(undisturbed, "schedule-free-adamw"), 1, 4)
    train(model, optimizer, 4, 4)
    assert same(model, undisturbed)


def test_other_optimizers_show_the_weights_that_they_train() -> None:
    model, before = net(), net()
    with optimizers.averaged(built(model, "adamw")):
        assert same(model, before)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_mover_counts_and_restores(name: str) -> None:
    model, again = net(), net()
    first = optimizers.Mover(built(model, name))
    assert first.count == 0 and not any(first.elements(w) for w in model.parameters())
    train(model, first.optimizer, 1, 3)
    assert first.count == 3
    again.load_state_dict(model.state_dict())
    second = optimizers.Mover(built(again, name))
    for old, new in zip(model.parameters(), again.parameters(), strict=True):
        second.restore(new, first.elements(old), first.rest(old), first.count)
    assert second.count == 3
    train(model, first.optimizer, 4, 5)
    train(again, second.optimizer, 4, 5)
    assert same(model, again)


def test_nothing_but_elements_and_a_count_is_left_of_plain_adamw_and_lion() -> None:
    for name in sorted(SHARDED):
        model = net()
        mover = optimizers.Mover(built(model, name))
        train(model, mover.optimizer, 1, 2)
        assert not any(mover.rest(weight) for weight in model.parameters())


def test_a_mover_of_two_kinds_agrees_on_what_adamw_keeps() -> None:
    """A state of full weights goes on with rounded ones, since both keep it in float32."""
    model, rounded_ = net(), net(torch.bfloat16)
    first, second = optimizers.Mover(built(model, "adamw")), optimizers.Mover(built(rounded_, "adamw"))
    train(model, first.optimizer, 1, 2)
    for old, new in zip(model.parameters(), rounded_.parameters(), strict=True):
        second.restore(new, first.elements(old), first.rest(old), first.count)
        assert torch.equal(second.elements(new)["exp_avg"], first.elements(old)["exp_avg"])
    train(rounded_, second.optimizer, 3, 3)
    assert second.count == 3
