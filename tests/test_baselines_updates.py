"""Sketches of updates: against explicit hash matrices, exact updates, a variance in closed form. Sharded: test_distributed.py.

Run: python -m pytest tests/test_baselines_updates.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from tests.conftest import FAMILIES, MakeModel
from torch import Tensor

from casd.config import LoraConfig
from casd.metric.baselines.count_sketch import count_sketch
from casd.metric.baselines.updates import sketch_update, update_distances
from casd.models.weights import attach_lora, copy_weights, merge_adapters, trained_parameters


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sketched(x: Tensor, size: int, *, seed: int = 0, name: str = "x", piece: int = 10**6) -> Tensor:
    return count_sketch(x.split(piece), size, seed=seed, name=name)


def shake(model: torch.nn.Module, seed: int, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def exact_update(model: torch.nn.Module, injected: dict[str, Tensor]) -> Tensor:
    """All parameters' changes end to end, in float64."""
    named = trained_parameters(model)
    return torch.cat([(named[name].detach().double() - injected[name].double()).flatten() for name in injected])


# ---------------------------------------------------------------- the sketch of a vector


@pytest.mark.parametrize("size", [24, 37, 64, 500])
def test_it_is_a_matrix_with_one_sign_a_column(size: int) -> None:
    """The matrix is read off the unit vectors; it has every property of the definition, and gives the sketch."""
    n = 210
    columns = torch.stack([sketched(unit, size) for unit in torch.eye(n)], dim=1)
    assert columns.shape == (size, n)
    assert torch.equal(columns.abs().sum(0), torch.ones(n, dtype=torch.float64))
    assert set(columns.unique().tolist()) == {-1.0, 0.0, 1.0}
    for start in range(0, n, size):
        assert columns[:, start : start + size].abs().sum(1).max() == 1, "within a stretch no two entries meet"
    x = randn(n)
    torch.testing.assert_close(sketched(x, size), columns @ x, rtol=1e-12, atol=1e-12)


def test_signs_and_offsets_are_random() -> None:
    size, n = 64, 64 * 300
    ones = sketched(torch.ones(n), size)
    assert abs(ones.sum()) < 5 * math.sqrt(n), "as many signs of either kind, by five standard deviations"
    starts = torch.zeros(n)
    starts[::size] = 1.0  # the first entry of each stretch: where it comes to lie is the stretch's offset
    buckets = torch.stack([sketched(starts.view(-1, size)[k:].flatten(), size, seed=k).abs() for k in range(20)]).sum(0)
    assert (buckets > 0).all(), "300 entries one stretch apart do not share a bucket"


@pytest.mark.parametrize("piece", [1, 7, 64, 100, 999])
def test_the_pieces_do_not_matter(piece: int) -> None:
    x = randn(999)
    assert torch.equal(sketched(x, 64, piece=piece), sketched(x, 64))


def test_hashes_hang_on_the_name_and_the_seed_alone() -> None:
    x = randn(3000)
    torch.randn(5)  # the global random state has no part in it
    assert torch.equal(sketched(x, 128), sketched(x, 128))
    for other in (sketched(x, 128, name="y"), sketched(x, 128, seed=1)):
        assert (sketched(x, 128) - other).norm() > x.norm()


def test_it_is_linear() -> None:
    x, y = randn(5000, seed=1), randn(5000, seed=2)
    torch.testing.assert_close(
        sketched(2 * x - 3 * y, 256), 2 * sketched(x, 256) - 3 * sketched(y, 256), rtol=1e-12, atol=1e-12
    )


def structured(n: int, period: int) -> Tensor:
    """Nearly all of it in every `period`-th entry, as where an update is that of one column of a matrix."""
    x = 0.01 * randn(n, seed=9)
    x[::period] = randn(len(x[::period]), seed=8)
    return x


@pytest.mark.parametrize("kind", ["dense", "structured"])
def test_inner_products_are_unbiased_with_the_variance_of_the_formula(kind: str) -> None:
    """Over 1500 seeds: the mean within four standard errors, the variance within 20 % (five standard errors or so)."""
    n, size = 640, 32
    x = structured(n, size) if kind == "structured" else randn(n, seed=1)
    y = 0.5 * x + randn(n, seed=2) * x.std()
    products = torch.stack([sketched(x, size, seed=seed) @ sketched(y, size, seed=seed) for seed in range(1500)])
    # Σ over pairs in different stretches, which meet with probability 1/size.
    apart = (torch.arange(n)[:, None] // size != torch.arange(n) // size).double()
    terms = torch.outer(x**2, y**2) + torch.outer(x * y, x * y)
    variance = (apart * terms).sum().item() / size
    assert products.mean().item() == pytest.approx((x @ y).item(), abs=4 * math.sqrt(variance / len(products)))
    assert products.var().item() == pytest.approx(variance, rel=0.2)
    assert variance <= ((x @ x) * (y @ y) + (x @ y) ** 2).item() / size


def test_the_error_falls_as_the_root_of_the_size() -> None:
    """Root mean squares over 40 seeds, relative to the bound, of 131,072 entries; each size is sixteen times the one before."""
    n = 2**17
    x = randn(n, seed=1)
    y = 0.3 * x + randn(n, seed=2)
    bound = math.sqrt(((x @ x) * (y @ y) + (x @ y) ** 2).item())
    errors = []
    for size in (64, 1024, 16384):
        found = torch.stack([sketched(x, size, seed=s) @ sketched(y, size, seed=s) for s in range(40)])
        errors.append((found - x @ y).square().mean().sqrt().item() / bound)
    for size, error in zip((64, 1024, 16384), errors, strict=True):
        # Entries of one stretch never meet, so where stretches are few the error is below 1/√size: by the share of such pairs.
        expected = math.sqrt((1 - size / n) / size)
        assert error == pytest.approx(expected, rel=0.4)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.5)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.5)


def test_distances_at_the_default_size() -> None:
    """Three million entries, 65,536 numbers: within four standard deviations of the docstring's formulas."""
    x, noise = randn(3_000_000, seed=1), randn(3_000_000, seed=2)
    updates = torch.stack([x, 0.9 * x + 0.2 * noise, noise])
    estimated = update_distances(torch.stack([sketched(update, 65_536) for update in updates]))
    exact = update_distances(updates)
    relative = (estimated["weights_l2"] / exact["weights_l2"]) ** 2 - 1
    assert relative[~torch.eye(3, dtype=torch.bool)].abs().max() < 4 * math.sqrt(2 / 65_536)
    cosine = 1 - exact["weights_cosine"]
    assert ((estimated["weights_cosine"] - exact["weights_cosine"]).abs() <= 4 * (1 - cosine**2) / 256 + 1e-12).all()


def test_a_sketch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sketched(randn(3), 0)
    assert torch.equal(count_sketch([], 4, seed=0, name="x"), torch.zeros(4, dtype=torch.float64))


# ---------------------------------------------------------------- updates of models


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_distances_are_those_of_the_exact_updates(make_model: MakeModel, family: str, lora: bool) -> None:
    """Three removals; the second is mostly the first's continuation."""
    model = make_model(family, seed=1, spread=0.2)
    if lora:
        attach_lora(model, LoraConfig(rank=3, alpha=5.0), "removal", seed=0)
    injected = copy_weights(model)
    sketches, updates = [], []
    for seeds in ((1,), (1, 2), (3, 3)):
        with torch.no_grad():
            for name, parameter in trained_parameters(model).items():
                parameter.copy_(injected[name])
        for seed in seeds:
            shake(model, seed)
        sketches.append(sketch_update(model, injected, size=4096, seed=0))
        if lora:
            deltas = [module.get_delta_weight("removal") for module in model.modules() if hasattr(module, "lora_A")]
            updates.append(torch.cat([delta.detach().double().flatten() for delta in deltas]))
        else:
            updates.append(exact_update(model, injected))
    assert all(sketch.shape == (4096,) and sketch.dtype == torch.float64 for sketch in sketches)
    estimated, exact = update_distances(torch.stack(sketches)), update_distances(torch.stack(updates))
    off = ~torch.eye(3, dtype=torch.bool)
    assert ((estimated["weights_l2"] / exact["weights_l2"])[off] ** 2 - 1).abs().max() < 4 * math.sqrt(2 / 4096)
    assert (estimated["weights_cosine"] - exact["weights_cosine"]).abs().max() < 4 / math.sqrt(4096)
    assert exact["weights_cosine"][0, 1] < 0.5 < exact["weights_cosine"][0, 2]


def test_it_is_the_sum_over_parameters_in_any_order(make_model: MakeModel) -> None:
    model = make_model("llama", seed=1, spread=0.2)
    injected = copy_weights(model)
    shake(model, 1)
    named = trained_parameters(model)
    differences = {name: (named[name].detach().double() - injected[name].double()).flatten() for name in injected}
    parts = [sketched(difference, 512, seed=3, name=name) for name, difference in differences.items()]
    backwards = dict(reversed(injected.items()))
    expected = torch.stack(parts).sum(0)
    torch.testing.assert_close(sketch_update(model, injected, size=512, seed=3), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sketch_update(model, backwards, size=512, seed=3), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(sketch_update(model, injected, size=512, seed=3), sketch_update(model, injected, size=512, seed=3))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_sketched_as_the_weights_it_stands_for(make_model: MakeModel, family: str) -> None:
    """The same sketch as that of the model into which it is merged: the same names, the same order of entries."""
    model = make_model(family, seed=1, spread=0.2)
    plain = copy_weights(model)
    attach_lora(model, LoraConfig(rank=3, alpha=5.0), "removal", seed=0)
    injected = copy_weights(model)
    shake(model, 1, scale=0.5)
    sketch = sketch_update(model, injected, size=512, seed=0)
    merge_adapters(model)
    assert sketch.norm() > 1
    torch.testing.assert_close(sketch, sketch_update(model, plain, size=512, seed=0), rtol=0, atol=1e-4)


def test_an_adapter_of_the_embedding_is_sketched_as_the_weights_it_stands_for(make_model: MakeModel) -> None:
    model = make_model("llama", seed=1, spread=0.2, tie_word_embeddings=False)
    plain = copy_weights(model)
    attach_lora(model, LoraConfig(rank=3, modules=["embed_tokens", "q_proj"]), "removal", seed=0)
    injected = copy_weights(model)
    shake(model, 1, scale=0.5)
    sketch = sketch_update(model, injected, size=512, seed=0)
    merge_adapters(model)
    torch.testing.assert_close(sketch, sketch_update(model, plain, size=512, seed=0), rtol=0, atol=1e-4)


def test_the_experts_of_a_mixture_are_sketched_by_their_products(make_model: MakeModel) -> None:
    """Ranks in another order within each expert: other factors, the same update."""
    model = make_model("mixtral", num_local_experts=4)
    attach_lora(model, LoraConfig(rank=3, modules=["w1", "w2", "w3"]), "removal", seed=0)
    injected = copy_weights(model)
    shake(model, 1)
    before = sketch_update(model, injected, size=4096, seed=0)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "num_experts", 1) == 4 and hasattr(module, "lora_A"):
                a, b = module.lora_A["removal"].weight, module.lora_B["removal"].weight
                a.copy_(a.reshape(4, len(a) // 4, -1).flip(1).reshape(a.shape))
                b.copy_(b.reshape(len(b), -1, 4).flip(1).reshape(b.shape))
    assert before.norm() > 1
    torch.testing.assert_close(sketch_update(model, injected, size=4096, seed=0), before, rtol=0, atol=1e-4)


def test_the_update_and_not_the_factors(make_model: MakeModel) -> None:
    model = make_model("qwen3", seed=1, spread=0.2)
    attach_lora(model, LoraConfig(rank=3), "removal", seed=0)
    injected = copy_weights(model)
    assert not sketch_update(model, injected, size=256, seed=0).any(), "a fresh adapter changes nothing"
    shake(model, 1)
    before = sketch_update(model, injected, size=256, seed=0)
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            parameter.mul_(4.0 if ".lora_A." in name else 0.25)
    torch.testing.assert_close(sketch_update(model, injected, size=256, seed=0), before)


def test_an_adapter_that_was_not_fresh(make_model: MakeModel) -> None:
    """B A − B₀ A₀: going from one state to a second and from there to a third is going from the first to the third."""
    model = make_model("llama", seed=1, spread=0.2)
    attach_lora(model, LoraConfig(rank=3), "removal", seed=0)
    states = []
    for seed in (1, 2, 3):
        states.append(copy_weights(model))
        shake(model, seed)
    third_step = sketch_update(model, states[2], size=256, seed=0)
    both = sketch_update(model, states[1], size=256, seed=0)
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            parameter.copy_(states[2][name])
    second_step = sketch_update(model, states[1], size=256, seed=0)
    assert second_step.norm() > 1
    torch.testing.assert_close(both, second_step + third_step, rtol=1e-6, atol=1e-6)


def test_the_adapter_of_the_injection_is_no_part_of_it(make_model: MakeModel) -> None:
    alone, beside = make_model("llama", seed=1, spread=0.2), make_model("llama", seed=1, spread=0.2)
    attach_lora(beside, LoraConfig(rank=5), "injection", seed=4)
    shake(beside, 7)
    sketches = []
    for model in (alone, beside):
        attach_lora(model, LoraConfig(rank=2, modules=["v_proj", "down_proj"]), "removal", seed=0)
        injected = copy_weights(model)
        shake(model, 1)
        sketches.append(sketch_update(model, injected, size=256, seed=0))
    assert torch.equal(*sketches)


def test_differences_of_bfloat16_weights_are_not_rounded(make_model: MakeModel) -> None:
    model = make_model("olmo2", seed=1, spread=0.2).to(torch.bfloat16)
    injected = copy_weights(model)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.copy_(randn(*parameter.shape, seed=2) * 0.01)  # near by, the difference would be exact in bfloat16
    update = exact_update(model, injected)
    named = trained_parameters(model)
    rounded = torch.cat([(named[name].detach() - injected[name]).double().flatten() for name in injected])
    assert (rounded - update).norm() > 1e-4 * update.norm(), "else there is nothing to see"
    shift = torch.zeros(512, dtype=torch.float64)
    for name in injected:
        shift += sketched((named[name].detach().double() - injected[name].double()).flatten(), 512, name=name)
    torch.testing.assert_close(sketch_update(model, injected, size=512, seed=0), shift, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_memory_is_bounded_and_the_bound_changes_nothing(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    model = make_model("llama", seed=1, spread=0.2)
    if lora:
        attach_lora(model, LoraConfig(rank=3), "removal", seed=0)
    injected = copy_weights(model)
    shake(model, 1)
    whole = sketch_update(model, injected, size=64, seed=0)
    longest = 0

    def watched(pieces: Iterator[Tensor], size: int, *, seed: int, name: str) -> Tensor:
        def seen() -> Iterator[Tensor]:
            nonlocal longest
            for piece in pieces:
                longest = max(longest, len(piece))
                yield piece

        return count_sketch(seen(), size, seed=seed, name=name)

    monkeypatch.setattr("casd.metric.baselines.updates.PIECE", 100)
    monkeypatch.setattr("casd.metric.baselines.updates.count_sketch", watched)
    torch.testing.assert_close(sketch_update(model, injected, size=64, seed=0), whole, rtol=1e-10, atol=1e-10)
    assert 48 <= longest <= 100


def test_weights_of_another_model(make_model: MakeModel) -> None:
    model = make_model("llama", seed=1)
    with pytest.raises(ValueError, match="no parameter 'nowhere'"):
        sketch_update(model, {"nowhere": torch.zeros(3)}, seed=0)
    with pytest.raises(ValueError, match=r"'model.norm.weight' is \(32,\) in the model, and \(3,\)"):
        sketch_update(model, {"model.norm.weight": torch.zeros(3)}, seed=0)
    attach_lora(model, LoraConfig(rank=3), "removal", seed=0)
    half = {name: value for name, value in copy_weights(model).items() if ".lora_A." in name}
    with pytest.raises(ValueError, match=r"have no .*lora_B\.removal"):
        sketch_update(model, half, seed=0)


# ---------------------------------------------------------------- distances


def test_distances_of_known_updates() -> None:
    updates = torch.tensor([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0], [0.0, 0.0], [0.0, 0.0]])
    found = update_distances(updates)
    assert set(found) == {"weights_l2", "weights_cosine"}
    l2 = [[0, 5, 50**0.5, 5, 5], [5, 0, 125**0.5, 10, 10], [50**0.5, 125**0.5, 0, 5, 5], [5, 10, 5, 0, 0], [5, 10, 5, 0, 0]]
    cosine = [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    torch.testing.assert_close(found["weights_l2"], torch.tensor(l2, dtype=torch.float64))
    torch.testing.assert_close(found["weights_cosine"], torch.tensor(cosine, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\(n, size\)"):
        update_distances(updates[0])


def test_an_update_that_diverged_spoils_its_own_row_only() -> None:
    updates = randn(3, 8)
    updates[1, 2] = math.nan
    for matrix in update_distances(updates).values():
        assert matrix.isnan().tolist() == [[False, True, False], [True, False, True], [False, True, False]]
