"""Figures of cells, weights and numbers, as data that is drawn as SVG or as pixels."""
