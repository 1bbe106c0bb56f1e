"""Corpora: where clean text comes from. Each source gives a `Corpus` of `Passage`s in three disjoint splits.

A source is a frozen dataclass with the fields `train`, `retain` and `evaluation` (numbers of passages) and two methods:
`load(seed) -> Corpus`, and `fingerprint()`, a JSON-able identity of whatever the corpus depends on beyond the fields
and the seed (files, installed text).
"""

CORPORA: dict[str, str] = {
    "microworld": "casd.corpora.microworld:Microworld",
    "python_docs": "casd.corpora.python_docs:PythonDocs",
    "text_files": "casd.corpora.text_files:TextFiles",
}
