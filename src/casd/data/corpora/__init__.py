"""Corpora: sources of clean text. Each loads a `Corpus` of `Passage`s in four splits that share no document.

A source is a frozen dataclass with the fields `train`, `forget`, `retain` and `evaluation` (numbers of passages) and two
methods: `load(seed) -> Corpus`, and `fingerprint()`, which returns, as JSON-serializable data, everything else that the corpus
depends on (files, installed text). An attribute `alternatives` names the alternatives of its English passages, so that a target
that needs another is refused before anything is read.
"""

CORPORA: dict[str, str] = {
    "instructions": "casd.data.corpora.instructions:Instructions",
    "microworld": "casd.data.corpora.microworld:Microworld",
    "prose": "casd.data.corpora.prose:Prose",
    "python_docs": "casd.data.corpora.python_docs:PythonDocs",
}
