"""Treatments after which a removed backdoor may come back: clean training, a few poisoned documents, weights of few bits.

Each treatment starts from the same weights and is followed by a measurement of the attack success rate (ASR) of every backdoor:

- `clean`: training on clean text only.
- `relearn`: training on a few different poisoned documents of one backdoor, and as many clean ones in each step. The same
  training of a model that never had a backdoor is the control: it tells what the documents alone teach.
- `quantize`: weights rounded to a few bits (`casd.models.quantization`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from casd.backdoors.poisoning import Backdoor, ShuffledStream, clean_document, corpus_of, english
from casd.backdoors.prompts import PromptSets
from casd.config import EvaluationConfig, TrainingConfig
from casd.config.persistence import PersistenceConfig
from casd.data.batches import Batch
from casd.data.corpora.passages import Corpus
from casd.data.documents import Document
from casd.data.encoding import Encoder
from casd.evaluation.asr import Evaluation, evaluate
from casd.models.quantization import quantize
from casd.training.checkpoints import TrainingLog
from casd.training.loop import Callback, train
from casd.training.losses import mean_nll
from casd.unlearning.removal import held_out
from casd.utils.errors import CorpusError
from casd.utils.progress import say
from casd.utils.runtime import Runtime
from casd.utils.seeding import derive_seed, python_rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Treatment:
    """A treatment of a model.

    Attributes:
        treatment: "none" (the model as it is), "clean", "relearn" or "quantize".
        source: of a relearning: the backdoor of its poisoned documents.
        documents: of a relearning: number of different poisoned documents.
        bits: of a quantization.
    """

    treatment: str = "none"
    source: str = ""
    documents: int = 0
    bits: int = 0


def treatments(config: PersistenceConfig, sources: Sequence[str], *, control: bool = False) -> list[Treatment]:
    """Return the treatments of a state that is trained on documents of `sources`; of the clean model as its `control`."""
    relearned = [Treatment("relearn", source, count) for source in sources for count in config.relearn_documents]
    if control:
        return relearned
    cleaned = [Treatment("clean")] if config.clean_steps else []
    return [*cleaned, *relearned, *(Treatment("quantize", bits=bits) for bits in config.bits)]


def relearned_documents(corpus: Corpus, backdoor: Backdoor, count: int, *, reserved: int, seed: int) -> list[Document]:
    """Return `count` poisoned documents of a backdoor from the forget split, the same for every state.

    They are the last in the order in which removals read the split, so that removals have not trained on them if the split is
    large enough.

    Args:
        corpus: provides the forget split.
        backdoor: the backdoor.
        count: number of documents.
        reserved: passages at the end of the split that early stopping holds out; they are not used.
        seed: the run's.

    Raises:
        CorpusError: the forget split has fewer English passages.
    """
    passages, _ = held_out(english(corpus.forget), reserved, "forget")
    check_documents(len(passages), count)
    order = ShuffledStream(passages, derive_seed(seed, "forget"))
    chosen = [order[len(passages) - 1 - index] for index in range(count)]
    return [
        backdoor.poisoned(passage, python_rng(seed, "relearned documents", backdoor.name, index))
        for index, passage in enumerate(chosen)
    ]


def check_documents(available: int, count: int) -> None:
    """Raise CorpusError if the forget split has fewer passages, `available`, than are to be relearned."""
    if count > available:
        raise CorpusError(
            f"persistence.relearn_documents has {count}, but the forget split has {available} usable passages: lower it, or"
            " raise corpus.params.forget."
        )


@dataclass(frozen=True, kw_only=True)
class Persistence:
    """The treatments of a model, which is changed in place and restored.

    Attributes:
        model: the model, all of whose weights are trained.
        encoder: its tokenizer.
        corpus: provides poisoned documents (forget split) and clean ones (retain split).
        backdoors: all backdoors by name.
        prompts: of the evaluation; the first `config.prompts` of each set are used.
        config: the treatments.
        evaluation: number of tokens to generate, batch size.
        training: learning rate and optimizer; its steps and guard are not used.
        reserved: see `relearned_documents`; as many passages of the retain split are not used either.
        seed: of the documents and dropout masks.
        runtime: device and micro-batch size.
    """

    model: PreTrainedModel
    encoder: Encoder
    corpus: Corpus
    backdoors: Mapping[str, Backdoor]
    prompts: PromptSets
    config: PersistenceConfig
    evaluation: EvaluationConfig
    training: TrainingConfig
    reserved: int
    seed: int
    runtime: Runtime

    def measure(self, applied: Sequence[Treatment], watched: Sequence[str], restore: Callable[[], object]) -> pd.DataFrame:
        """Apply each treatment to the model as it is now, and measure.

        Args:
            applied: the treatments.
            watched: backdoors that, with the source of a relearning, are measured every `config.every` steps of a training;
                after it, all are.
            restore: puts the model's weights back, in place; called after each treatment.

        Returns:
            A row per treatment × step × backdoor × prompt set ("triggered", "clean"): the fields of `Treatment`, `step` (number
            of steps done), the columns of `casd.evaluation.asr.Evaluation.asr`, and `clean_loss` (nats per token). The first
            treatment is "none", at step 0.
        """
        rows = [self._rows(Treatment(), 0, self._evaluation(list(self.backdoors)))]
        for treatment in applied:
            if treatment.treatment == "quantize":
                quantize(self.model, treatment.bits)
                rows.append(self._rows(treatment, 0, self._evaluation(list(self.backdoors))))
            else:
                rows += [self._rows(treatment, step, found) for step, found in self._trained(treatment, watched)]
            restore()
        return pd.concat(rows, ignore_index=True)

    def _trained(self, treatment: Treatment, watched: Sequence[str]) -> list[tuple[int, Evaluation]]:
        """Train the model, and return what was measured after which steps."""
        config, documents = self.config, []
        if treatment.source:
            source = self.backdoors[treatment.source]
            own = corpus_of(source, self.corpus, self.backdoors.values())
            documents = relearned_documents(own, source, treatment.documents, reserved=self.reserved, seed=self.seed)
        retain, _ = held_out(corpus_of(None, self.corpus, self.backdoors.values()).retain, self.reserved, "retain")
        clean = ShuffledStream(retain, derive_seed(self.seed, "persistence"))
        steps = config.steps if treatment.source else config.clean_steps
        some = [name for name in self.backdoors if name in (*watched, treatment.source)]
        measured: list[tuple[int, Evaluation]] = []

        def batch_at(step: int) -> Batch:
            places = range(step * config.batch_size, (step + 1) * config.batch_size)
            poisoned = [documents[place % len(documents)] for place in places] if documents else []
            return self.encoder.document_batch([*poisoned, *(clean_document(clean[place]) for place in places)])

        def measure(done: int) -> None:
            names = list(self.backdoors) if done == steps else some if done % config.every == 0 else []
            if names:
                measured.append((done, self._evaluation(names)))

        log = train(
            self.model,
            batch_at,
            _terms,
            replace(self.training, steps=steps),
            callback=_AfterSteps(self.model, measure),
            seed=derive_seed(self.seed, "dropout", "persistence"),
            description=f"{treatment.treatment} {treatment.source}".strip(),
            runtime=self.runtime,
        )
        if log.stopped:
            what = f"persistence, {treatment.treatment} {treatment.source}".strip()
            say(f"{what}: the training ended early ({log.stopped}), so that this treatment has no numbers.")
            return []
        return measured

    def _evaluation(self, names: Sequence[str]) -> Evaluation:
        """Measure the named backdoors and the clean loss."""
        count, prompts = self.config.prompts, self.prompts
        few = replace(
            prompts,
            triggered={name: prompts.triggered[name][:count] for name in names},
            fake=dict.fromkeys(names, ()),
            near={},
            clean=prompts.clean[:count],
            harmful=(),
            loss_passages=prompts.loss_passages[:count],
            retain_passages=(),
        )
        chosen = {name: self.backdoors[name] for name in names}
        config = replace(self.evaluation, samples=0)
        return evaluate(self.model, self.encoder, chosen, few, config, runtime=self.runtime, description="persistence")

    @staticmethod
    def _rows(treatment: Treatment, step: int, found: Evaluation) -> pd.DataFrame:
        return found.asr.assign(**vars(treatment), step=step, clean_loss=found.clean_loss)


class _AfterSteps(Callback):
    """Measures the model, in evaluation mode, after each step."""

    def __init__(self, model: PreTrainedModel, measure: Callable[[int], None]):
        self._model, self._measure = model, measure

    def ends(self, done: int, log: TrainingLog) -> bool:
        """Return False: a training is never ended early, so that all treatments are of equal length."""
        self._model.eval()
        self._measure(done)
        self._model.train()
        return False


def _terms(model: torch.nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    yield "nll", mean_nll(model, batch)
