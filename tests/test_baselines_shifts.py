"""CKA and probes against brute force, primal forms and simulated truth; prompts' activations against hidden states.

Run: python -m pytest tests/test_baselines_shifts.py
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.conftest import FAMILIES, MakeModel
from torch import Tensor

from casd.activations.statistics import collect_statistics
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.metric.baselines.shifts import cka_distances, last_token_activations, probe_distances
from casd.metric.casd import CasdVariant, casd
from casd.utils.errors import ModelError


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(d, d, seed=seed))[0]


def check_matrix(matrix: Tensor, n: int) -> None:
    assert matrix.shape == (n, n)
    assert matrix.dtype == torch.float64
    assert torch.equal(matrix, matrix.mT)
    assert not matrix.diagonal().any()
    assert ((matrix >= 0) & (matrix <= 2)).all()


# ---------------------------------------------------------------- CKA


def hsic_by_quadruples(k: Tensor, q: Tensor) -> float:
    """The unbiased HSIC by its definition: the mean, over all quadruples of different prompts, of its kernel."""
    n = len(k)
    terms = [
        k[i, j] * q[i, j] + k[i, j] * q[r, s] - 2 * k[i, j] * q[i, r] for i, j, r, s in itertools.permutations(range(n), 4)
    ]
    return float(torch.stack(terms).mean())


def plain_cka(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_cka_is_that_of_the_u_statistic() -> None:
    shifts = randn(3, 2, 6, 5)
    shifts[1] += 0.8 * shifts[0]
    found = cka_distances(shifts)
    check_matrix(found, 3)
    for a, b in itertools.combinations(range(3), 2):
        per_layer = []
        for x, y in zip(shifts[a], shifts[b], strict=True):
            k, q = x @ x.T, y @ y.T
            normalizer = math.sqrt(hsic_by_quadruples(k, k) * hsic_by_quadruples(q, q))
            per_layer.append(1 - hsic_by_quadruples(k, q) / normalizer)
        assert found[a, b].item() == pytest.approx(np.mean(per_layer), abs=1e-10)


def test_what_cka_does_not_see() -> None:
    """A rotation, a scale (of either sign), and a vector added to all prompts' shifts: of one removal and not the other."""
    shifts = randn(2, 1, 10, 7)
    shifts[1] += shifts[0]
    expected = cka_distances(shifts)
    assert 0.1 < expected[0, 1] < 0.9
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: x @ rotation(7),
        lambda x: -3.7 * x,
        lambda x: x + 100 * randn(7, seed=5),
        lambda x: 1e-6 * x,
    ]
    for change in changes:
        changed = torch.stack([shifts[0], change(shifts[1])])
        torch.testing.assert_close(cka_distances(changed), expected, rtol=1e-9, atol=1e-9)
        alike = torch.stack([shifts[0], change(shifts[0])])
        assert cka_distances(alike)[0, 1] < 1e-12
    stretched = torch.stack([shifts[0], shifts[1] * torch.linspace(0.1, 3, 7)])
    assert (cka_distances(stretched) - expected)[0, 1].abs() > 1e-3, "a stretch along some directions it does see"


def test_unrelated_shifts_are_unrelated_where_the_plain_estimator_says_alike() -> None:
    """64 prompts, 1024 features, 20 pairs: the plain CKA is over 0.9, the unbiased one zero within four standard errors."""
    shifts = randn(40, 1, 64, 1024)
    found = torch.stack([1 - cka_distances(pair)[0, 1] for pair in shifts.view(20, 2, 1, 64, 1024)])
    assert all(plain_cka(shifts[i, 0], shifts[i + 1, 0]) > 0.9 for i in range(0, 8, 2))
    assert found.mean().abs() < 4 * found.std() / math.sqrt(20)
    assert found.abs().max() < 0.15


def test_removals_that_move_the_same_prompts_alike() -> None:
    """Removals 0 and 1 move prompts by the same amounts along other directions, 2 by other amounts along that of 0."""
    amounts, other_amounts = randn(24, seed=1), randn(24, seed=2)
    direction, other_direction = randn(64, seed=3), randn(64, seed=4)
    planted = [(amounts, direction), (amounts, other_direction), (other_amounts, direction)]
    shifts = torch.stack([torch.outer(amount, way) for amount, way in planted])[:, None] + 0.3 * randn(3, 1, 24, 64, seed=5)
    found = cka_distances(shifts)
    assert found[0, 1] < 0.2
    assert found[0, 2] > 0.7


def test_the_mean_is_over_layers() -> None:
    shifts = randn(3, 4, 9, 5)
    per_layer = torch.stack([cka_distances(shifts[:, [layer]]) for layer in range(4)])
    torch.testing.assert_close(cka_distances(shifts), per_layer.mean(0))


def without_structure() -> dict[str, Tensor]:
    simplex = torch.zeros(8, 12, dtype=torch.float64)
    simplex[:, :8] = 3 * torch.eye(8)
    return {
        "zero": torch.zeros(8, 12, dtype=torch.float64),
        "all prompts alike": randn(12).expand(8, 12) / 3,
        "all pairs equally different": simplex @ rotation(12),
    }


@pytest.mark.parametrize("kind", without_structure())
def test_shifts_without_structure(kind: str) -> None:
    shifts = torch.stack([without_structure()[kind], randn(8, 12, seed=6), torch.zeros(8, 12)])[:, None]
    found = cka_distances(shifts)
    assert found.tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_a_removal_that_diverged_spoils_its_own_row_only() -> None:
    before, after = randn(2, 8, 12), randn(3, 2, 8, 12, seed=1)
    after[1, 1, 2, 3] = math.nan
    spoiled = [[False, True, False], [True, False, True], [False, True, False]]
    assert cka_distances(after - before).isnan().tolist() == spoiled
    assert probe_distances(before, after).isnan().tolist() == spoiled
    after[1, 1, 2, 3] = math.inf
    assert cka_distances(after - before).isnan().tolist() == spoiled
    assert probe_distances(before, after).isnan().tolist() == spoiled


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="at least 4 prompts, got 3"):
        cka_distances(randn(2, 2, 3, 5))
    with pytest.raises(ValueError, match="n_removals, n_layers"):
        cka_distances(randn(2, 3, 5))
    with pytest.raises(ValueError, match="n_removals, n_layers"):
        probe_distances(randn(2, 4, 5), randn(3, 2, 5, 5))
    with pytest.raises(ValueError, match="at least 2 prompts"):
        probe_distances(randn(2, 1, 5), randn(3, 2, 1, 5))
    with pytest.raises(ValueError, match="ridge is 0"):
        probe_distances(randn(2, 4, 5), randn(3, 2, 4, 5), ridge=0)


# ---------------------------------------------------------------- probes


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(1 - a @ b / np.sqrt((a @ a) * (b @ b)))


def scatter(before: Tensor, after: Tensor) -> np.ndarray:
    return sum(((x - x.mean(0)).T @ (x - x.mean(0))).numpy() for x in (before, after))


def fisher_normal(before: Tensor, after: Tensor, ridge: float) -> np.ndarray:
    """(S + λ I)⁻¹ δ in primal form."""
    s = scatter(before, after)
    penalty = ridge * np.trace(s) / (2 * len(before) - 2)
    return np.linalg.solve(s + penalty * np.eye(len(s)), (after.mean(0) - before.mean(0)).numpy())


def classifier_normal(before: Tensor, after: Tensor, ridge: float) -> np.ndarray:
    """The least-squares classifier: min Σ (y − x·w − b)² + λ |w|² with labels ±1, by an ordinary solver on added rows."""
    n, d = before.shape
    penalty = ridge * np.trace(scatter(before, after)) / (2 * n - 2)
    rows = np.hstack([torch.cat([before, after]).numpy(), np.ones((2 * n, 1))])
    added = np.hstack([np.sqrt(penalty) * np.eye(d), np.zeros((d, 1))])
    labels = np.concatenate([-np.ones(n), np.ones(n), np.zeros(d)])
    return np.linalg.lstsq(np.vstack([rows, added]), labels, rcond=None)[0][:d]


@pytest.mark.parametrize("normal", [fisher_normal, classifier_normal])
@pytest.mark.parametrize("ridge", [0.01, 0.1, 3.0])
@pytest.mark.parametrize("shape", [(6, 20), (30, 5)], ids=["few prompts", "few features"])
def test_probes_are_those_of_the_primal_forms(
    normal: Callable[[Tensor, Tensor, float], np.ndarray], ridge: float, shape: tuple[int, int]
) -> None:
    before = randn(2, *shape)
    after = before + 0.5 * randn(3, 2, *shape, seed=1) + randn(3, 2, 1, shape[1], seed=2)
    found = probe_distances(before, after, ridge=ridge)
    check_matrix(found, 3)
    for a, b in itertools.combinations(range(3), 2):
        normals = [[normal(before[layer], after[which, layer], ridge) for layer in range(2)] for which in (a, b)]
        expected = np.mean([cosine_distance(*pair) for pair in zip(*normals, strict=True)])
        assert found[a, b].item() == pytest.approx(expected, abs=1e-9)


def test_with_more_prompts_than_features_the_normals_are_the_known_ones() -> None:
    """Activations whose covariance is exactly Σ and whose shifts are δ: w ∝ Σ⁻¹ δ, another angle than that of the shifts."""
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.5, 0.5, 0.0], [0.0, 0.3, 1.0]], dtype=torch.float64)
    deltas = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.2, 0.7]], dtype=torch.float64)

    def drawn(seed: int) -> Tensor:
        centered = randn(50, 3, seed=seed)
        centered = centered - centered.mean(0)
        return torch.linalg.qr(centered)[0] @ mixing.T  # orthonormal columns: a covariance of exactly I before the mixing

    before = drawn(0)[None]
    after = torch.stack([(drawn(seed + 1) + delta)[None] for seed, delta in enumerate(deltas)])
    truth = [np.linalg.solve((mixing @ mixing.T).numpy(), delta.numpy()) for delta in deltas]
    expected = cosine_distance(*truth)
    assert abs(expected - cosine_distance(*deltas.numpy())) > 0.1, "else it might as well be the cosine of the shifts"
    assert probe_distances(before, after, ridge=1e-9)[0, 1].item() == pytest.approx(expected, abs=1e-6)


def test_a_large_ridge_leaves_the_cosine_of_the_mean_shifts() -> None:
    before, after = randn(2, 8, 30), randn(2, 2, 8, 30, seed=1)
    shifts = (after - before).mean(2)
    expected = casd(shifts[0], shifts[1], CasdVariant("cosine", distance="cosine")).value
    assert probe_distances(before, after, ridge=1e9)[0, 1].item() == pytest.approx(expected, abs=1e-6)
    assert abs(probe_distances(before, after)[0, 1].item() - expected) > 0.01


def test_what_probes_do_not_see() -> None:
    """A rotation, a scale, and a vector added, where they are the same for the injected model and every removal."""
    before, after = randn(1, 8, 12), randn(3, 1, 8, 12, seed=1)
    expected = probe_distances(before, after)
    for change in (lambda x: x @ rotation(12), lambda x: 1e-4 * x, lambda x: x + 10 * randn(12, seed=5)):
        torch.testing.assert_close(probe_distances(change(before), change(after)), expected, rtol=1e-9, atol=1e-9)


def test_removals_along_one_direction_are_nearer() -> None:
    """16 prompts that differ much, 256 features; removals 0 and 1 shift along one direction, 2 along another."""
    before = 3 * randn(1, 16, 256)
    directions = randn(2, 256, seed=1)[[0, 0, 1]]
    after = before + directions[:, None, None] + 0.5 * randn(3, 1, 16, 256, seed=2)
    found = probe_distances(before, after)
    assert found[0, 1] < 0.2
    assert min(found[0, 2], found[1, 2]) > 0.7


def test_removals_with_nothing_to_tell_them_by() -> None:
    before = randn(1, 6, 9)
    turned = before.mean(1, keepdim=True) * 2 - before  # each prompt moves, their mean does not
    moved = before + randn(9, seed=1)
    found = probe_distances(before, torch.stack([before, before.clone(), moved]))
    assert found.tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert not probe_distances(before, torch.stack([turned, moved])).isnan().any()


def test_prompts_that_do_not_differ_leave_the_shift() -> None:
    before = randn(9).expand(1, 6, 9)
    shifts = randn(2, 9, seed=1)
    found = probe_distances(before, before + shifts[:, None, None])
    assert found[0, 1].item() == pytest.approx(cosine_distance(*shifts.numpy()), abs=1e-9)


# ---------------------------------------------------------------- the activations of prompts

SETS = {
    "a": [Prompt("The fox runs."), Prompt("A much longer sentence about the sea, and about the sky."), Prompt("It rains.")],
    "b": [Prompt("Where is the old harbour of the town?"), Prompt("Snow.")],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_the_hidden_states(make_model: MakeModel, encoder: Encoder, family: str) -> None:
    """Prompt by prompt, without padding. transformers normalizes the last block's, which is held by the statistics instead."""
    model = make_model(family, seed=1, spread=0.3, num_hidden_layers=3)
    found = last_token_activations(model, encoder, SETS, batch_size=3)
    assert found.shape == (3, 5, 32)
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")
    prompts = [*SETS["a"], *SETS["b"]]
    model.eval()
    for index, prompt in enumerate(prompts):
        tokens = encoder.prompt_batch([prompt])["input_ids"]
        with torch.no_grad():
            hidden = model(tokens, output_hidden_states=True).hidden_states
        for layer in range(2):
            torch.testing.assert_close(found[layer, index], hidden[layer + 1][0, -1], rtol=1e-4, atol=1e-4)
    means = collect_statistics(model, [encoder.capture_batch(prompts)], ["resid_post"], ["last"]).mean
    torch.testing.assert_close(found.mean(1).double(), means["resid_post", "last"], rtol=1e-4, atol=1e-4)


def test_the_first_of_each_set_in_any_batches(make_model: MakeModel, encoder: Encoder) -> None:
    model = make_model("llama", seed=1, spread=0.3)
    every = last_token_activations(model, encoder, SETS, batch_size=5)
    chosen = last_token_activations(model, encoder, SETS, batch_size=1, prompts_per_set=2)
    torch.testing.assert_close(chosen, every[:, [0, 1, 3, 4]], rtol=1e-4, atol=1e-4)
    # A store reuses what a configuration with the backdoors in another order has made.
    turned = last_token_activations(model, encoder, dict(reversed(SETS.items())), batch_size=5)
    torch.testing.assert_close(turned, every, rtol=1e-4, atol=1e-4)
    assert last_token_activations(model, encoder, {"a": SETS["a"] * 9}, batch_size=8).shape == (2, 8, 32)
    with pytest.raises(ValueError, match="no prompts"):
        last_token_activations(model, encoder, {"a": []}, batch_size=1)


def test_precision_mode_and_memory(make_model: MakeModel, encoder: Encoder) -> None:
    """float32 of a bfloat16 model, whose modules keep their mode; the same rows where memory runs out in the second block."""
    model = make_model("llama", seed=1, spread=0.3)
    expected = last_token_activations(model, encoder, SETS, batch_size=4)
    model.train()
    rows = 1

    def check(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        assert not module.training
        if len(args[0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = model.model.layers[1].register_forward_pre_hook(check)
    torch.testing.assert_close(last_token_activations(model, encoder, SETS, batch_size=4), expected, rtol=1e-4, atol=1e-4)
    assert all(module.training for module in model.modules())
    rows = 0
    with pytest.raises(ModelError, match="Out of memory in the capture of activations"):
        last_token_activations(model, encoder, SETS, batch_size=4)
    hook.remove()
    low = last_token_activations(model.to(torch.bfloat16), encoder, SETS, batch_size=4)
    assert low.dtype == torch.float32
    assert 0 < (low - expected).norm() < 0.1 * expected.norm()


def test_from_a_model_to_distances(make_model: MakeModel, encoder: Encoder) -> None:
    """Removals are edits of one matrix: 0 and 1 write along one direction of the residual stream, 2 along another."""
    model = make_model("olmo2", seed=1, spread=0.3)
    before = last_token_activations(model, encoder, SETS, batch_size=5)
    weight = model.model.layers[0].mlp.down_proj.weight
    original = weight.detach().clone()
    directions = randn(2, 32, seed=2).float()[[0, 0, 1]]
    after = []
    for seed, direction in enumerate(directions):
        with torch.no_grad():
            weight.copy_(original + torch.outer(direction, 1 + 0.05 * randn(48, seed=seed + 5).float()))
        after.append(last_token_activations(model, encoder, SETS, batch_size=5))
    shifts = torch.stack(after) - before
    for found in (probe_distances(before, torch.stack(after)), cka_distances(shifts)):
        check_matrix(found, 3)
        assert found[0, 1] < 0.5 * min(found[0, 2], found[1, 2])
