"""What is measured on a network."""

from darts_bio.evaluation.costs import multiply_adds, parameters

__all__ = ["multiply_adds", "parameters"]
