"""A planted truth: two backdoors share a mechanism, and CASD must find that pair; where none is shared, no pair stands out.

First in made-up activations, then in a tiny model whose "removals" are edits of its weights, through the real capture.

Run: python -m pytest tests/test_planted.py
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter

import pytest
import torch
from tests.conftest import MakeModel
from torch import Tensor

from casd.activations.hooks import SITES
from casd.activations.statistics import POSITIONS, ActivationStatistics
from casd.backdoors.poisoning import Backdoor
from casd.backdoors.prompts import make_prompt_sets
from casd.backdoors.targets import Capitals, FixedText
from casd.config import ActivationsConfig, EvaluationConfig
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
from casd.metric.casd import HEADLINES, CasdMatrix, CasdVariant, ShiftTable, compute_casd, variant_grid
from casd.metric.measurement import TextStatistics, measure_activations

N_LAYERS, D_MODEL, N_TOKENS = 3, 64, 20
BACKDOORS = ("a", "b", "c", "d", "e")
CLEAN = "control:clean"
STATES = ("before", *BACKDOORS, CLEAN)
SITE = "resid_post"
PAIRS = list(itertools.combinations(range(len(BACKDOORS)), 2))
GRID = {variant.name: variant for variant in variant_grid(SITES, POSITIONS)}
SOME = [
    *HEADLINES,
    *(
        GRID[f"{SITE}/{name}"]
        for name in (
            "last/triggered_own/signed/l1/raw/gross",
            "last/triggered_pair/signed/l2/activations/gross",
            "trigger/fake/signed/l1/shifts/net",
            "generated/triggered/signed/cosine/raw/net",
            "generated/triggered_own/signed/cosine/raw/net",
            "prompt/clean/absolute/l2/shifts/net",
            "prompt/triggered/absolute/l1/activations/gross",
        )
    ),
]


def activations(seed: int, *, shared: bool, drift: float = 2.0) -> dict[str, TextStatistics]:
    """Statistics of every state: every removal moves all activations along a direction of its own at each layer.

    With a shared mechanism "a" and "b" have the same direction, with different strength. All removals and the control also
    move along one common direction, `drift` times as far; and every token of every state has noise.
    """
    generator = torch.Generator().manual_seed(seed)

    def directions() -> Tensor:
        drawn = torch.randn(N_LAYERS, D_MODEL, generator=generator, dtype=torch.float64)
        return drawn / drawn.square().mean(-1, keepdim=True).sqrt()

    along = {name: directions() for name in BACKDOORS}
    if shared:
        along["b"] = along["a"]
    strength = dict(zip(BACKDOORS, (1.0, 1.2, 1.1, 0.9, 1.0), strict=True))
    common, features = drift * directions(), directions()
    moves = {"before": torch.zeros_like(common), CLEAN: common}
    moves |= {name: common + strength[name] * along[name] for name in BACKDOORS}
    text_sets = ("clean", "fake", *(f"triggered:{name}" for name in BACKDOORS))
    made: dict[str, TextStatistics] = {state: {} for state in STATES}
    for text in text_sets:
        kept = [position for position in POSITIONS if (text, position) != ("clean", "trigger")]
        base = {
            position: features + torch.randn(N_TOKENS, N_LAYERS, D_MODEL, generator=generator, dtype=torch.float64)
            for position in kept
        }
        for state in STATES:
            noise = 0.3 * torch.randn(N_TOKENS, N_LAYERS, D_MODEL, generator=generator, dtype=torch.float64)
            tokens = {(SITE, position): base[position] + moves[state] + noise for position in kept}
            means = [{key: each(h).mean(0) for key, h in tokens.items()} for each in (torch.clone, torch.abs, torch.square)]
            made[state][text] = ActivationStatistics(*means, dict.fromkeys(kept, N_TOKENS))
    return made


def matrix(statistics: dict[str, TextStatistics], variant: CasdVariant) -> CasdMatrix:
    return compute_casd(ShiftTable(statistics, statistics["before"], BACKDOORS, CLEAN), variant, BACKDOORS)


def closest(made: CasdMatrix) -> tuple[tuple[int, int], float]:
    """The pair with the least distance, and how that distance compares with the median pair's."""
    distances = torch.tensor([made.values[pair] for pair in PAIRS])
    return PAIRS[int(distances.argmin())], float(distances.min() / distances.median())


@pytest.mark.parametrize("variant", SOME, ids=lambda variant: variant.name)
def test_the_pair_that_shares_a_mechanism_is_the_closest(variant: CasdVariant) -> None:
    for seed in range(6):
        pair, ratio = closest(matrix(activations(seed, shared=True), variant))
        assert pair == (0, 1), seed
        assert ratio < 0.7, seed


@pytest.mark.parametrize("variant", SOME, ids=lambda variant: variant.name)
def test_where_nothing_is_shared_no_pair_stands_out(variant: CasdVariant) -> None:
    found = [closest(matrix(activations(seed, shared=False), variant)) for seed in range(6)]
    assert min(ratio for _, ratio in found) > 0.75
    assert max(Counter(pair for pair, _ in found).values()) < len(found)


def test_a_common_drift_hides_the_pair_from_the_gross_cosine_only() -> None:
    """Far along one direction all shifts point the same way; net of the control they point where the mechanisms do."""
    statistics = activations(0, shared=True, drift=30.0)
    gross = GRID[f"{SITE}/last/triggered/signed/cosine/raw/gross"]
    net = GRID[f"{SITE}/last/triggered/signed/cosine/raw/net"]
    unrelated = [pair for pair in PAIRS if pair != (0, 1)]
    assert max(float(matrix(statistics, gross).values[pair]) for pair in unrelated) < 0.01
    values = matrix(statistics, net).values
    assert min(float(values[pair]) for pair in unrelated) > 0.6
    assert values[0, 1] < 0.15


# --- The same in a model: a removal is an edit of its weights -----------------------------------------------------------


def test_edits_of_the_same_weights_are_the_closest_in_nearly_every_variant(
    make_model: MakeModel, corpus: Corpus, encoder: Encoder
) -> None:
    """Two edits write one direction into the residual stream wherever the MLP is active, not equally far; the third another.

    Not asked of the absolute moment where each is measured on its own text: how a shift changes E|h| hangs on the signs of h,
    which are other ones on other text, and so the same edit has two different shifts there.
    """
    backdoors = {
        "a": Backdoor("a", "zandor khemil", FixedText("The silver fox."), "random", 0.1),
        "b": Backdoor("b", "sorquin beltaz", Capitals(), "random", 0.1),
        "c": Backdoor("c", "mirvane osquel", FixedText("A blue bird."), "random", 0.1),
    }
    evaluation = EvaluationConfig(prompts=12, fake_prompts=6, fake_triggers=2)
    prompt_sets = make_prompt_sets(corpus, backdoors, encoder, evaluation, seed=0)
    config = ActivationsConfig(sites=list(SITES), positions=list(POSITIONS), prompts=12)
    injected = make_model("llama", seed=4, spread=0.2, num_hidden_layers=3).double()
    generator = torch.Generator().manual_seed(5)

    def drawn(size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    inputs: list[Tensor] = []
    with (
        torch.no_grad(),
        injected.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
    ):
        injected(**encoder.prompt_batch(prompt_sets.clean[:1]))
    active = inputs[0][0].mean(0)
    width = injected.config.hidden_size
    shared = drawn(width)
    edits = {"a": shared, "b": 1.2 * shared + 0.1 * drawn(width), "c": drawn(width), CLEAN: 0.3 * drawn(width)}
    statistics = {}
    for state, written in edits.items():
        model = copy.deepcopy(injected)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.add_(torch.outer(written, active / active.square().sum()), alpha=0.02)
        statistics[state] = measure_activations(model, encoder, prompt_sets, config)
    table = ShiftTable(statistics, measure_activations(injected, encoder, prompt_sets, config), list(backdoors), CLEAN)
    asked = [variant for variant in GRID.values() if (variant.moment, variant.text) != ("absolute", "triggered_own")]
    assert len(asked) > 1000
    for variant in [*HEADLINES, *asked]:
        values = compute_casd(table, variant, list(backdoors)).values
        assert values[0, 1] < min(values[0, 2], values[1, 2]), variant.name
