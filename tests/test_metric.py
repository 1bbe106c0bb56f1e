"""CASD against closed forms, scipy's distances, the axioms of a metric, and shifts planted exactly in a tiny model.

Run: python -m pytest tests/test_metric.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
import torch
import transformers
from torch import Tensor

from casd.activations.statistics import ActivationStatistics, collect_statistics
from casd.metric.casd import HEADLINES, CasdVariant, ShiftTable, activation_shift, casd, compute_casd
from casd.utils.errors import ConfigError

N_LAYERS, D_MODEL = 3, 8
KEY = ("resid_post", "prompt")
L1, L2, COSINE = CasdVariant("l1"), CasdVariant("l2", distance="l2"), CasdVariant("cosine", distance="cosine")
SCIPY: dict[str, Callable[[Any, Any], float]] = {
    "l1": lambda a, b: scipy.spatial.distance.cityblock(a, b) / len(a),
    "l2": lambda a, b: scipy.spatial.distance.euclidean(a, b) / math.sqrt(len(a)),
    "cosine": scipy.spatial.distance.cosine,
}


def random_shift(seed: int) -> Tensor:
    """Of very different sizes from layer to layer, as residual streams are."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(N_LAYERS, D_MODEL, generator=generator, dtype=torch.float64)
    return shift * torch.tensor([[0.01], [1.0], [100.0]], dtype=torch.float64)


def statistics_of(tokens: Tensor, keys: tuple[tuple[str, str], ...] = (KEY,)) -> ActivationStatistics:
    """The statistics of activations (n_tokens, n_layers, d_model), the same under every key."""
    moments = [dict.fromkeys(keys, moment) for moment in (tokens.mean(0), tokens.abs().mean(0), tokens.square().mean(0))]
    return ActivationStatistics(*moments, {position: len(tokens) for _, position in keys})


def random_tokens(seed: int, n_tokens: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_tokens, N_LAYERS, D_MODEL, generator=generator, dtype=torch.float64)


def test_closed_forms() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 0.0]])
    b = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
    distances = {variant.name: casd(a, b, variant) for variant in (L1, L2, COSINE)}
    assert distances["l1"].per_layer.tolist() == [7 / 4, 3 / 4]
    assert distances["l1"].value == 5 / 4
    assert distances["l2"].per_layer.tolist() == pytest.approx([5 / 2, math.sqrt(5) / 2])
    assert distances["cosine"].per_layer.tolist() == pytest.approx([1 - 5 / math.sqrt(30 * 5), 1])
    concatenated = casd(a, b, replace(L2, pooling="concatenate"))
    assert concatenated.value == pytest.approx(math.sqrt(30 / 8))
    assert concatenated.per_layer.tolist() == distances["l2"].per_layer.tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("distance", SCIPY)
def test_distances_are_scipy_s(distance: Any, seed: int) -> None:
    a, b = random_shift(seed), random_shift(seed + 100)
    per_layer = [SCIPY[distance](x, y) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    mean = casd(a, b, CasdVariant("v", distance=distance))
    assert mean.per_layer.tolist() == pytest.approx(per_layer, rel=1e-12)
    assert mean.value == pytest.approx(np.mean(per_layer), rel=1e-12)
    concatenated = casd(a, b, CasdVariant("v", distance=distance, pooling="concatenate"))
    assert concatenated.value == pytest.approx(SCIPY[distance](a.flatten().numpy(), b.flatten().numpy()), rel=1e-12)


EVERY_DISTANCE = [
    CasdVariant("v", distance=distance, normalization=normalization, pooling=pooling)
    for distance in ("l1", "l2", "cosine")
    for normalization in ("raw", "shifts")
    for pooling in ("mean", "concatenate")
    if (distance, normalization) != ("cosine", "shifts")
]


@pytest.mark.parametrize("variant", EVERY_DISTANCE, ids=str)
def test_symmetric_and_exactly_zero_on_itself(variant: CasdVariant) -> None:
    for seed in range(20):
        a, b = random_shift(seed), random_shift(seed + 100)
        assert casd(a, b, variant).value == casd(b, a, variant).value > 0
        assert casd(a, a.clone(), variant).value == 0
        assert not casd(a, a.clone(), variant).per_layer.any()


@pytest.mark.parametrize("variant", [variant for variant in EVERY_DISTANCE if variant.normalization == "raw"], ids=str)
def test_triangle_inequality_holds_for_l1_and_l2_alone(variant: CasdVariant) -> None:
    broken = 0
    for seed in range(100):
        # b near the middle between a and c: where the inequality is tight.
        a, c = random_shift(seed), random_shift(seed + 1000)
        b = (a + c) / 2 + 0.05 * random_shift(seed + 2000)
        ab, bc, ac = (casd(x, y, variant).value for x, y in ((a, b), (b, c), (a, c)))
        broken += ac > (ab + bc) * (1 + 1e-12)
    assert broken == 0 if variant.distance != "cosine" else broken > 50


def test_scale() -> None:
    a, b = random_shift(0), random_shift(1)
    assert casd(7 * a, 0.3 * b, COSINE).value == pytest.approx(casd(a, b, COSINE).value, rel=1e-12)
    assert casd(a, -a, COSINE).value == pytest.approx(2, rel=1e-12)
    for variant in (L1, L2):
        assert casd(7 * a, 7 * b, variant).value == pytest.approx(7 * casd(a, b, variant).value, rel=1e-12)
        by_shifts = replace(variant, normalization="shifts")
        assert casd(7 * a, 7 * b, by_shifts).value == pytest.approx(casd(a, b, by_shifts).value, rel=1e-12)
        assert casd(a, -a, by_shifts).value == pytest.approx(2, rel=1e-12)  # as far apart as can be


def test_small_angles_keep_their_digits() -> None:
    a, b = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1.0, 1e-9]]).double()
    assert casd(a, b, COSINE).value == pytest.approx(5e-19, rel=1e-6)  # 1 − cos would give 0


def test_zero_shifts() -> None:
    zero, some = torch.zeros(2, 4), torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert casd(zero, some, COSINE).per_layer.tolist() == [1, 0]
    assert casd(some, zero, COSINE).per_layer.tolist() == [1, 0]
    assert casd(zero, zero, replace(COSINE, pooling="concatenate")).value == 0
    assert casd(zero, some, replace(L1, normalization="shifts")).per_layer.tolist() == [2, 0]
    assert casd(zero, some, replace(L2, normalization="shifts")).value == 1


def test_normalization_by_the_shifts() -> None:
    a, b = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    by_shifts = replace(L1, normalization="shifts")
    assert casd(a, b, by_shifts).per_layer.tolist() == pytest.approx([4 / 5, 2])  # 4 / mean(7, 3), 2 / mean(1, 1)
    assert casd(a, b, replace(by_shifts, pooling="concatenate")).value == pytest.approx(1)  # 6 / mean(8, 4)
    assert casd(a, b, replace(L2, normalization="shifts")).per_layer[0].item() == pytest.approx(4 / 4)  # 4 / mean(5, 3)


def test_non_finite_shifts_give_non_finite_distances() -> None:
    a, b = random_shift(0), random_shift(1)
    a[1, 2] = math.nan
    for variant in EVERY_DISTANCE:
        assert math.isnan(casd(a, b, variant).value)


def test_shift_is_after_minus_before_of_the_moment() -> None:
    before, after = random_tokens(0), random_tokens(1) + 2
    signed = activation_shift(statistics_of(after), statistics_of(before), L1)
    torch.testing.assert_close(signed, (after - before).mean(0))
    assert signed.mean() > 1
    absolute = activation_shift(statistics_of(after), statistics_of(before), replace(L1, moment="absolute"))
    torch.testing.assert_close(absolute, (after.abs() - before.abs()).mean(0))
    assert not torch.allclose(signed, absolute)


def test_normalization_by_the_activations() -> None:
    by_activations = replace(L1, normalization="activations")
    before, after = random_tokens(0), random_tokens(1)
    shift = activation_shift(statistics_of(after), statistics_of(before), by_activations)
    rms = before.numpy().transpose(1, 0, 2).reshape(N_LAYERS, -1)
    rms = np.sqrt(np.mean(rms**2, axis=1))
    np.testing.assert_allclose(shift.numpy(), (after - before).mean(0).numpy() / rms[:, None], rtol=1e-12)
    # Changing the unit of a layer's activations changes nothing.
    unit = torch.tensor([[0.01], [3.0], [1000.0]], dtype=torch.float64)
    rescaled = activation_shift(statistics_of(after * unit), statistics_of(before * unit), by_activations)
    torch.testing.assert_close(rescaled, shift)


def test_activations_that_are_all_zero_cannot_normalize() -> None:
    before = random_tokens(0)
    before[:, 1] = 0
    variant = replace(L1, normalization="activations")
    with pytest.raises(ConfigError, match="all zero in layer 1"):
        activation_shift(statistics_of(random_tokens(1)), statistics_of(before), variant)
    others = activation_shift(statistics_of(random_tokens(1)), statistics_of(before), replace(variant, layers=(0, 2)))
    assert others.isfinite().all()


def test_layers_are_selected_in_ascending_order() -> None:
    after, before = statistics_of(random_tokens(0)), statistics_of(random_tokens(1))
    everything = activation_shift(after, before, L1)
    assert torch.equal(activation_shift(after, before, replace(L1, layers=(2, 0))), everything[[0, 2]])


# --- Matrices over planted shifts: every removal adds a constant to the activations of a text set. -------------------

BACKDOORS = ("french", "german", "caps")
CONTROLS = ("control:clean", "control:phantom")
TEXT_SETS = ("clean", "fake", *(f"triggered:{name}" for name in BACKDOORS))
REMOVALS = (*BACKDOORS, "control:phantom")
BASE = {text: random_tokens(200 + index, 4 + index) for index, text in enumerate(TEXT_SETS)}
BEFORE = {text: statistics_of(tokens) for text, tokens in BASE.items()}
PLANTED = {
    (state, text): random_shift(10 * index + number)
    for index, state in enumerate((*BACKDOORS, *CONTROLS))
    for number, text in enumerate(TEXT_SETS)
}
STATISTICS = {
    state: {text: statistics_of(BASE[text] + PLANTED[state, text]) for text in TEXT_SETS} for state in (*BACKDOORS, *CONTROLS)
}


def matrix(
    variant: CasdVariant,
    removals: Sequence[str] = REMOVALS,
    backdoors: Sequence[str] = BACKDOORS,
    control: str | None = CONTROLS[0],
) -> Any:
    return compute_casd(ShiftTable(STATISTICS, BEFORE, backdoors, control), variant, removals)


def planted(state: str, *backdoors: str) -> Tensor:
    return torch.stack([PLANTED[state, f"triggered:{backdoor}"] for backdoor in backdoors]).mean(0)


def l1(a: Tensor, b: Tensor) -> float:
    return float(np.abs((a - b).numpy()).mean())


# For two removals: the planted shift of each on the text where the pair is compared.
EXPECTED: dict[str, Callable[[str, str], tuple[Tensor, Tensor]]] = {
    "clean": lambda a, b: (PLANTED[a, "clean"], PLANTED[b, "clean"]),
    "fake": lambda a, b: (PLANTED[a, "fake"], PLANTED[b, "fake"]),
    "triggered": lambda a, b: (planted(a, *BACKDOORS), planted(b, *BACKDOORS)),
    "triggered_pair": lambda a, b: (planted(a, a, b), planted(b, a, b)),
    "triggered_own": lambda a, b: (planted(a, a), planted(b, b)),
}
WITH_THE_PHANTOM: dict[str, Callable[[str, str], tuple[Tensor, Tensor]]] = EXPECTED | {
    "triggered_pair": EXPECTED["triggered"],
    "triggered_own": lambda a, b: (planted(a, a), planted(b, *BACKDOORS)),
}


@pytest.mark.parametrize("text", EXPECTED)
def test_matrix_on_every_choice_of_text(text: Any) -> None:
    result = matrix(CasdVariant("v", text=text))
    frame = result.to_frame()
    assert (tuple(frame.index), tuple(frame.columns)) == (result.names, result.names)
    assert frame.to_numpy().tolist() == result.values.tolist()
    assert result.names == REMOVALS
    assert result.layers == (0, 1, 2)
    assert result.values.dtype == result.per_layer.dtype == torch.float64
    for row, a in enumerate(BACKDOORS):
        for column, b in enumerate(BACKDOORS):
            expected = l1(*EXPECTED[text](a, b)) if a != b else 0.0
            assert result.values[row, column].item() == pytest.approx(expected, rel=1e-9, abs=0.0)
        expected = l1(*WITH_THE_PHANTOM[text](a, "control:phantom"))
        assert result.values[row, 3].item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(result.per_layer.mean(-1), result.values)
    assert torch.equal(result.values, result.values.T)


@pytest.mark.parametrize("text", ["triggered_pair", "triggered_own", "triggered"])
def test_own_text_is_not_mistaken_for_the_other_s(text: Any) -> None:
    """Each choice of triggered text gives its own matrix."""
    others = [matrix(CasdVariant("v", text=other)).values for other in EXPECTED if other != text]
    mine = matrix(CasdVariant("v", text=text)).values
    assert all(not torch.allclose(mine, other) for other in others)


def test_removals_are_reordered_with_their_values() -> None:
    result, order = matrix(L1), [3, 1, 0, 2]
    again = matrix(L1, removals=[REMOVALS[index] for index in order])
    assert torch.equal(again.values, result.values[order][:, order])
    torch.testing.assert_close(matrix(L1, backdoors=BACKDOORS[::-1]).values, result.values, rtol=1e-12, atol=0)


def test_layers_of_the_matrix() -> None:
    everything, two = matrix(L1), matrix(replace(L1, layers=(2, 0)))
    assert two.layers == (0, 2)
    assert torch.equal(two.per_layer, everything.per_layer[..., [0, 2]])
    torch.testing.assert_close(two.values, everything.per_layer[..., [0, 2]].mean(-1))


@pytest.mark.parametrize("variant", [CasdVariant("v", distance="cosine"), CasdVariant("v", normalization="shifts")])
def test_net_of_control_subtracts_the_control_s_shift(variant: CasdVariant) -> None:
    net = matrix(replace(variant, net_of_control=True))
    for row, a in enumerate(REMOVALS):
        for column, b in enumerate(REMOVALS):
            drift = planted("control:clean", *BACKDOORS)
            expected = casd(planted(a, *BACKDOORS) - drift, planted(b, *BACKDOORS) - drift, variant).value
            assert net.values[row, column].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert not torch.allclose(net.values, matrix(variant).values)


def test_net_of_control_uncovers_what_a_common_drift_hides() -> None:
    drift, a, b = torch.zeros(3, N_LAYERS, D_MODEL, dtype=torch.float64)
    drift[:, 0], a[:, 1], b[:, 2] = 100.0, 1.0, 1.0
    states = {"a": drift + a, "b": drift + b, "control:clean": drift}
    base = random_tokens(0)
    statistics = {state: {"clean": statistics_of(base + shift)} for state, shift in states.items()}
    variant = CasdVariant("v", text="clean", distance="cosine")
    table = ShiftTable(statistics, {"clean": statistics_of(base)}, ["a", "b"], "control:clean")
    gross = compute_casd(table, variant, ["a", "b"])
    net = compute_casd(table, replace(variant, net_of_control=True), ["a", "b"])
    assert gross.values[0, 1] < 1e-3
    assert net.values[0, 1].item() == pytest.approx(1.0)


@pytest.mark.parametrize("variant", [L1, L2, replace(L1, normalization="activations")], ids=str)
def test_net_of_control_leaves_distances_between_shifts_on_one_text(variant: CasdVariant) -> None:
    net, gross = matrix(replace(variant, net_of_control=True)).values, matrix(variant).values
    torch.testing.assert_close(net, gross, rtol=1e-9, atol=1e-12)


def test_the_control_itself_has_no_net_shift() -> None:
    variant = replace(COSINE, net_of_control=True)
    net = matrix(variant, removals=["french", "control:clean"]).values
    assert net.tolist() == [[0, 1], [1, 0]]  # between a zero vector and another


def test_site_position_and_moment_choose_what_is_compared() -> None:
    keys = [(site, position) for site in ("resid_post", "attn_out") for position in ("last", "prompt")]
    moments = [{key: random_shift(10 * row + column) for column, key in enumerate(keys)} for row in range(3)]
    after = ActivationStatistics(*moments, {"last": 1, "prompt": 1})
    zero = ActivationStatistics(*[{key: torch.zeros(N_LAYERS, D_MODEL) for key in keys}] * 3, {"last": 1, "prompt": 1})
    for key in keys:
        for moment, planted_moment in (("signed", moments[0]), ("absolute", moments[1])):
            variant = CasdVariant("v", site=key[0], position=key[1], moment=moment)
            assert torch.equal(activation_shift(after, zero, variant), planted_moment[key])


def test_headlines_are_fixed() -> None:
    casd_variant, cosine = HEADLINES
    assert (casd_variant.name, cosine.name) == ("casd", "casd_cos")
    defaults = CasdVariant("x")
    assert replace(casd_variant, name="x") == defaults
    assert (defaults.site, defaults.position, defaults.text) == ("resid_post", "prompt", "triggered")
    assert (defaults.moment, defaults.distance, defaults.normalization) == ("signed", "l1", "raw")
    assert (defaults.layers, defaults.pooling, defaults.net_of_control) == (None, "mean", False)
    assert replace(cosine, name="x") == replace(defaults, position="last", distance="cosine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"site": "resid_pre"}, "Did you mean 'resid_post'"),
        ({"position": "first"}, "position"),
        ({"text": "trigered"}, "Did you mean 'triggered'"),
        ({"moment": "absolut"}, "Did you mean 'absolute'"),
        ({"distance": "l3"}, "distance"),
        ({"normalization": None}, "Unknown normalization"),
        ({"pooling": "max"}, "Choices: concatenate, mean"),
        ({"distance": "cosine", "normalization": "shifts"}, "does not depend on the size"),
        ({"layers": ()}, "one or more"),
        ({"layers": (1, 1)}, "distinct indices"),
        ({"layers": (-1,)}, "indices from 0"),
    ],
)
def test_impossible_variants(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CasdVariant(**({"name": "v"} | options))


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        (CasdVariant("v", site="mlp_out"), {}, "needs 'mlp_out' at 'prompt'.*sites resid_post; positions prompt"),
        (CasdVariant("v", position="last"), {}, "needs 'resid_post' at 'last'"),
        (CasdVariant("v", layers=(0, 3)), {}, "layer 3 is out of range; the model has layers 0 to 2"),
        (L1, {"backdoors": (*BACKDOORS, "refusal")}, "'triggered:refusal', which was not captured.*Captured: clean, fake"),
        (L1, {"removals": ["frensh"]}, "Unknown removal.*'frensh'. Did you mean 'french'"),
        (CasdVariant("v", net_of_control=True), {"control": None}, "there is no control"),
        (CasdVariant("v", net_of_control=True), {"control": "control:clear"}, "Did you mean 'control:clean'"),
    ],
)
def test_what_was_not_captured(variant: CasdVariant, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        matrix(variant, **options)


def test_shifts_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="two shifts"):
        casd(torch.zeros(2, 3), torch.zeros(3, 3), L1)


# --- The whole chain, on a model in which a removal's shift is known exactly -----------------------------------------


def identity_model() -> Any:
    """A Llama whose sublayers put out their biases alone, all zero: every block passes the embedding on unchanged.

    Its numbers are multiples of 1/64, so that float32 sums are exact.
    """
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=D_MODEL,
        intermediate_size=12,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        attention_bias=True,
        mlp_bias=True,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        embedding = torch.randint(-64, 65, (40, D_MODEL), generator=generator) / 64
        model.model.embed_tokens.weight.copy_(embedding)
        for block in model.model.layers:
            for projection in (block.self_attn.o_proj, block.mlp.down_proj):
                projection.weight.zero_()
                projection.bias.zero_()
    return model


def exact_vector(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-64, 65, (D_MODEL,), generator=generator) / 64


def removed(projection: Callable[[Any], Any], layer: int, vector: Tensor) -> Any:
    """The identity model after a "removal" that adds `vector` to the residual stream in block `layer`."""
    model = identity_model()
    with torch.no_grad():
        projection(model.model.layers[layer]).bias.copy_(vector)
    return model


def text_batches(texts: list[list[int]], size: int) -> list[dict[str, Any]]:
    batches = []
    for start in range(0, len(texts), size):
        rows = texts[start : start + size]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = ids != 0
        last = torch.zeros_like(mask)
        last[:, -1] = True
        batches.append({"input_ids": ids, "attention_mask": mask.long(), "position_masks": {"prompt": mask, "last": last}})
    return batches


TEXTS = {
    "triggered:a": [[5, 9, 8, 3], [7, 7, 30], [21, 2]],
    "triggered:b": [[11, 12, 13], [39, 38, 37, 36, 35], [4, 3, 2], [1]],
}
VECTOR_A, VECTOR_B, VECTOR_C = exact_vector(1), exact_vector(2), exact_vector(3)
MODELS: dict[str, Callable[[], Any]] = {
    "a": lambda: removed(lambda block: block.mlp.down_proj, 0, VECTOR_A),
    "b": lambda: removed(lambda block: block.mlp.down_proj, 2, VECTOR_B),
    "control:phantom": lambda: removed(lambda block: block.self_attn.o_proj, 1, VECTOR_C),
}


def whole_chain(variant: CasdVariant, size: int = 2, order: int = 1) -> Any:
    def capture_all(model: Any) -> dict[str, ActivationStatistics]:
        return {name: collect_statistics(model, text_batches(texts[::order], size)) for name, texts in TEXTS.items()}

    statistics = {name: capture_all(build()) for name, build in MODELS.items()}
    return compute_casd(ShiftTable(statistics, capture_all(identity_model()), ["a", "b"]), variant, list(MODELS))


def mean_abs(vector: Tensor) -> float:
    return vector.double().abs().mean().item()


@pytest.mark.parametrize(("size", "order"), [(1, 1), (2, -1), (9, 1), (9, -1)])
def test_planted_vectors_are_found_layer_by_layer(size: int, order: int) -> None:
    """A vector added in block l is the shift of the residual stream from l on; however the texts are batched and sorted."""
    result = whole_chain(CasdVariant("v"), size, order)
    a, b, c = mean_abs(VECTOR_A), mean_abs(VECTOR_B), mean_abs(VECTOR_C)
    a_b, a_c, b_c = (mean_abs(x - y) for x, y in ((VECTOR_A, VECTOR_B), (VECTOR_A, VECTOR_C), (VECTOR_B, VECTOR_C)))
    expected = {(0, 1): [a, a, a_b], (0, 2): [a, a_c, a_c], (1, 2): [0.0, c, b_c]}
    assert min(a, b, c, a_b, a_c, b_c) > 0.1
    for (row, column), per_layer in expected.items():
        assert result.per_layer[row, column].tolist() == pytest.approx(per_layer, abs=1e-14)
        assert result.values[row, column].item() == pytest.approx(sum(per_layer) / N_LAYERS, abs=1e-14)
    assert result.values.diagonal().tolist() == [0.0, 0.0, 0.0]


def test_planted_vectors_are_found_at_their_site() -> None:
    mlp = whole_chain(CasdVariant("v", site="mlp_out", position="last"))
    assert mlp.per_layer[0, 1].tolist() == pytest.approx([mean_abs(VECTOR_A), 0, mean_abs(VECTOR_B)], abs=1e-14)
    attn = whole_chain(CasdVariant("v", site="attn_out"))
    assert attn.per_layer[0, 2].tolist() == pytest.approx([0, mean_abs(VECTOR_C), 0], abs=1e-14)
    assert not attn.per_layer[0, 1].any()


def test_planted_cosine() -> None:
    result = whole_chain(HEADLINES[1])
    cosine = scipy.spatial.distance.cosine(VECTOR_A.double().numpy(), VECTOR_B.double().numpy())
    assert result.per_layer[0, 1].tolist() == pytest.approx([1, 1, cosine], abs=1e-12)  # B has not moved before block 2


@pytest.mark.parametrize("normalization", ["raw", "activations"])
def test_absolute_moment_from_the_embeddings(normalization: Any) -> None:
    """In the last block every activation is embedding + vector, so the shift of E|h| follows from the embeddings."""
    variant = CasdVariant("v", moment="absolute", text="triggered_own", normalization=normalization, layers=(2,))
    embedding = identity_model().model.embed_tokens.weight.detach().double().numpy()
    shifts = []
    for name, vector in (("a", VECTOR_A), ("b", VECTOR_B)):
        h = np.concatenate([embedding[row] for row in TEXTS[f"triggered:{name}"]])  # every token weighs the same
        shift = np.abs(h + vector.double().numpy()).mean(0) - np.abs(h).mean(0)
        shifts.append(shift / np.sqrt((h**2).mean()) if normalization == "activations" else shift)
    expected = np.abs(shifts[0] - shifts[1]).mean()
    assert whole_chain(variant).values[0, 1].item() == pytest.approx(expected, rel=1e-12)
