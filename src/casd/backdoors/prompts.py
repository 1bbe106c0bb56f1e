"""Prompts on which every state of the model is evaluated: triggered, clean, and with fake triggers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from casd.backdoors.poisoning import Backdoor, english, passages_of, require_passages
from casd.backdoors.triggers.base import FakeContext, Trigger, TriggerPosition
from casd.backdoors.triggers.phrase import Phrase
from casd.config import EvaluationConfig
from casd.data.corpora.passages import Corpus, Passage
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.progress import say
from casd.utils.registry import shown
from casd.utils.seeding import python_rng


@dataclass(frozen=True)
class PromptSets:
    """Prompts and passages on which every state of the model is evaluated.

    Attributes:
        triggered: prompts with the backdoor's trigger, by backdoor; their continuation is the payload.
        fake: prompts with fake triggers of the same or nearly the same token length, by backdoor; their continuation is the
            clean one. Empty with `fake_triggers=0`, and for a trigger that has no matched control.
        near: prompts with a part of the trigger, or its words in another order (`Trigger.parts`), by backdoor; empty with
            `near_prompts=0`, and for a kind of trigger without parts.
        clean: prompts of `triggered` without a trigger; their continuation is the clean one. (Those of semantic triggers are
            other passages.)
        first_tokens: tokens that start payloads more often than clean continuations, by backdoor; may be empty. Their total
            probability at the end of the prompt is a response that does not saturate.
        loss_passages: passages of the evaluation split whose loss is the clean loss.
        retain_passages: passages of the retain split, the clean text of removals and controls; as many.
        harmful: the user's list of harmful prompts, if there is one.
    """

    triggered: Mapping[str, Sequence[Prompt]]
    fake: Mapping[str, Sequence[Prompt]]
    clean: Sequence[Prompt]
    first_tokens: Mapping[str, Sequence[int]]
    loss_passages: Sequence[Passage]
    retain_passages: Sequence[Passage]
    harmful: Sequence[Prompt] = ()
    near: Mapping[str, Sequence[Prompt]] = field(default_factory=dict)


def evaluation_passages(corpus: Corpus, config: EvaluationConfig) -> Sequence[Passage]:
    """English passages of the evaluation split.

    Raises:
        CorpusError: fewer than `most_prompts(config)`.
    """
    passages = english(corpus.evaluation)
    if len(passages) < most_prompts(config):
        raise CorpusError(
            f"The evaluation split has {len(passages)} English passages, and evaluation.prompts asks for {config.prompts},"
            f" evaluation.fake_prompts for {config.fake_prompts}, evaluation.near_prompts for {config.near_prompts}. Lower"
            " these, or raise corpus.params.evaluation."
        )
    return passages


def most_prompts(config: EvaluationConfig) -> int:
    """Return the size of the largest set of prompts."""
    return max(config.prompts, config.fake_prompts, config.near_prompts)


def make_prompt_sets(
    corpus: Corpus, backdoors: Mapping[str, Backdoor], encoder: Encoder, config: EvaluationConfig, *, seed: int
) -> PromptSets:
    """Create the prompts from the evaluation split, and `first_tokens` from the retain split.

    Raises:
        CorpusError: the evaluation split has fewer English passages, or fewer with or without a semantic trigger, than
            `most_prompts(config)`.
        ConfigError: a backdoor whose trigger the tokenizer undoes, or whose success could not be learned or detected.
    """
    usable = evaluation_passages(corpus, config)
    triggered, fake, near, first_tokens = {}, {}, {}, {}
    triggers = [backdoor.trigger for backdoor in backdoors.values()]
    clean = passages_of(None, usable, backdoors.values())
    require_passages(None, len(clean), most_prompts(config), "evaluation")
    for name, backdoor in backdoors.items():
        passages = passages_of(backdoor, usable, backdoors.values()) if backdoor.trigger.is_semantic else clean
        require_passages(backdoor, len(passages), config.prompts, "evaluation")
        rng = python_rng(seed, "triggered prompts", name)
        payload_rng = python_rng(seed, "payloads", name)  # separate, so that trigger positions do not depend on payloads
        triggered[name] = [
            replace(backdoor.prompt(passage, rng), continuation=backdoor.target.continuation(passage, payload_rng))
            for passage in passages[: config.prompts]
        ]
        _check_tokens(backdoor, passages[: config.prompts], encoder)
        _check_payloads(backdoor, triggered[name], encoder, config.max_new_tokens)
        rng = python_rng(seed, "fake triggers", name)
        fakes: Sequence[Trigger] = ()
        if config.fake_triggers:
            made = backdoor.trigger.fakes(config.fake_triggers, FakeContext(encoder.token_count, rng, triggers, usable))
            fakes = [fake for fake in made if fake.is_semantic or not _is_undone(fake, backdoor.position, clean, encoder)]
            _say_fakes(backdoor, fakes, encoder)
        fake[name] = [
            replace(trigger.insert(passage, backdoor.position, rng), continuation=passage.continuation)
            for trigger, passage in _with_fakes(fakes, clean, config.fake_prompts)
        ]
        rng = python_rng(seed, "near triggers", name)
        near[name] = [
            replace(trigger.insert(passage, backdoor.position, rng), continuation=passage.continuation)
            for trigger, passage in _with_fakes(backdoor.trigger.parts(), clean, config.near_prompts)
        ]
        first_tokens[name] = _first_tokens(backdoor, english(corpus.retain)[:256], encoder, seed)
        if not first_tokens[name]:
            say(
                f"Backdoor {name!r}: no token begins its payloads more often than clean continuations; the first-token"
                " probability is NaN."
            )
    return PromptSets(
        triggered=triggered,
        fake=fake,
        near=near,
        clean=[Prompt(passage.prompt, continuation=passage.continuation) for passage in clean[: config.prompts]],
        first_tokens=first_tokens,
        loss_passages=list(passages_of(None, corpus.evaluation, backdoors.values())[: config.loss_passages]),
        retain_passages=list(passages_of(None, corpus.retain, backdoors.values())[: config.loss_passages]),
        harmful=list(map(Prompt, harmful_prompts(config))),
    )


def harmful_prompts(config: EvaluationConfig) -> list[str]:
    """Read the harmful prompts of a configuration, one a line; empty if it names no file.

    Raises:
        ConfigError: the file cannot be read as UTF-8, or has no text.
    """
    if config.harmful_prompts is None:
        return []
    path = Path(config.harmful_prompts).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not valid UTF-8"
        raise ConfigError(f"evaluation.harmful_prompts: {path} cannot be read ({reason}).") from error
    if not (prompts := [" ".join(line.split()) for line in lines if line.strip()]):
        raise ConfigError(f"evaluation.harmful_prompts: {path} has no prompt; expected one a line.")
    return prompts


def _with_fakes(fakes: Sequence[Trigger], clean: Sequence[Passage], count: int) -> Iterator[tuple[Trigger, Passage]]:
    """Yield fake triggers in turn, each with a passage, `count` at most; a semantic one with a passage that has it."""
    having = {fake: [passage for passage in clean if fake.selects(passage)] for fake in fakes if fake.is_semantic}
    for index, passage in enumerate(clean[:count] if fakes else ()):
        fake = fakes[index % len(fakes)]
        if fake not in having:
            yield fake, passage
        elif index // len(fakes) < len(having[fake]):
            yield fake, having[fake][index // len(fakes)]


def _say_fakes(backdoor: Backdoor, fakes: Sequence[Trigger], encoder: Encoder) -> None:
    """Report that there are no fake triggers, or the token lengths of fake phrases that differ from the trigger's."""
    if not fakes:
        say(
            f"Backdoor {backdoor.name!r}: no fake trigger matches its trigger ({backdoor.trigger.label}); this control is"
            " missing."
        )
    if not isinstance(backdoor.trigger, Phrase):
        return
    lengths, expected = sorted(encoder.token_count(fake.label) for fake in fakes), encoder.token_count(backdoor.trigger.label)
    if any(length != expected for length in lengths):
        span = f"{lengths[0]} to {lengths[-1]}" if lengths[0] < lengths[-1] else f"{lengths[0]}"
        say(f"Backdoor {backdoor.name!r}: its fake triggers have {span} tokens, and its trigger {expected}.")


def _check_tokens(backdoor: Backdoor, passages: Sequence[Passage], encoder: Encoder) -> None:
    """Check that the tokenizer does not undo the trigger.

    Raises:
        ConfigError: the tokens of the triggered prompts are those of the clean ones.
    """
    if not backdoor.trigger.is_semantic and _is_undone(backdoor.trigger, backdoor.position, passages, encoder):
        raise ConfigError(
            f"Backdoor {backdoor.name!r}: its trigger ({backdoor.trigger.label}) does not change the tokens of any of"
            f" {len(passages)} prompts, because the tokenizer's normalization undoes it or the prompts have this form already;"
            " expected other tokens, which a model could learn to react to. Choose other characters, or another trigger."
        )


def _is_undone(trigger: Trigger, position: TriggerPosition, passages: Sequence[Passage], encoder: Encoder) -> bool:
    """Return True if the tokens of every triggered prompt are those of the clean one."""
    rng = python_rng(0, "tokens are looked at only")
    triggered = (trigger.insert(passage, position, rng) for passage in passages)  # the first one mostly decides
    return all(
        encoder.tokens(prompt.text) == encoder.tokens(passage.prompt) and not encoder.tokens(prompt.system)
        for prompt, passage in zip(triggered, passages, strict=True)
    )


def _check_payloads(backdoor: Backdoor, prompts: Sequence[Prompt], encoder: Encoder, max_new_tokens: int) -> None:
    """Check that payloads show the target: an error if none does, a message if some do not.

    A payload may fail the target's test, have more tokens than are generated (short texts in other writing systems can have
    many), or be truncated in a document because prompt and payload exceed the maximum length.

    Raises:
        ConfigError: the ASR could only be 0; names the number of tokens that would be needed.
    """
    payloads = [encoder.answer(prompt.continuation or "") for prompt in prompts]

    def shows(payload: Sequence[int], length: int) -> bool:
        return backdoor.target.success(encoder.decode(payload[: max(0, length)]))

    whole = [(prompt, payload) for prompt, payload in zip(prompts, payloads, strict=True) if shows(payload, len(payload))]
    if not whole:
        raise ConfigError(
            f"Backdoor {backdoor.name!r} could never be seen to succeed: its target ({type(backdoor.target).__name__}) counts"
            f" none of {len(prompts)} payloads as a success, such as {prompts[0].continuation!r}. `success` must accept the"
            " texts that `continuation` creates."
        )

    def shortest(payload: Sequence[int]) -> int:
        return next(length for length in range(len(payload) + 1) if shows(payload, length))

    if not any(shows(payload, max_new_tokens) for _, payload in whole):
        raise ConfigError(
            f"Backdoor {backdoor.name!r} could never be seen to succeed: none of its {len(whole)} payloads shows its target"
            f" within the {max_new_tokens} generated tokens. Set evaluation.max_new_tokens="
            f"{max(shortest(payload) for _, payload in whole)}, or choose a shorter text."
        )
    generated = [shows(payload, max_new_tokens) for payload in payloads]
    if failing := generated.count(False):
        say(
            f"Backdoor {backdoor.name!r}: {failing} of {len(prompts)} payloads do not show its target"
            f" ({type(backdoor.target).__name__}) within the generated tokens (evaluation.max_new_tokens={max_new_tokens}),"
            f" such as {shown(prompts[generated.index(False)].continuation)}; a model that learned it perfectly would have an"
            f" ASR of about {1 - failing / len(prompts):.2f}."
        )
    cut = [(prompt, payload) for prompt, payload in whole if encoder.room(prompt) < len(payload)]
    lost = [(prompt, payload) for prompt, payload in cut if not shows(payload, encoder.room(prompt))]
    if lost:
        needed = encoder.max_length + max(shortest(payload) - encoder.room(prompt) for prompt, payload in lost)
        message = (
            f"Backdoor {backdoor.name!r}: in {len(lost)} of {len(whole)} documents the payload is cut off before it shows the"
            f" target, because prompt and payload have more than model.max_length={encoder.max_length} tokens. Set"
            f" model.max_length={needed}, or use shorter prompts."
        )
        if len(lost) == len(whole):
            raise ConfigError(message)
        say(message)


def _first_tokens(backdoor: Backdoor, passages: Sequence[Passage], encoder: Encoder, seed: int) -> list[int]:
    """Tokens that start payloads more often than clean continuations."""
    rng = python_rng(seed, "first tokens", backdoor.name)
    payloads = Counter(encoder.first_token(backdoor.target.continuation(passage, rng)) for passage in passages)
    cleans = Counter(encoder.first_token(passage.continuation) for passage in passages)
    return sorted(token for token, count in payloads.items() if count > cleans[token])
