"""Build a pretraining corpus from Debian's packages: `python -m benchmarks.corpus`."""

from benchmarks.corpus.build import BuiltCorpus, build_corpus
from benchmarks.corpus.sources import SOURCES

__all__ = ["SOURCES", "BuiltCorpus", "build_corpus"]
