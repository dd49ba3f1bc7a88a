"""Batch scoring: images to logits to the probability table, for inputs of any size.

inputs → pipeline → shards → commit
"""

from nnbuild.scoring.probabilities import batches, logits_of, probability_table, write_predictions

__all__ = ["batches", "logits_of", "probability_table", "write_predictions"]
