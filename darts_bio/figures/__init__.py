"""Figures: pictures of cells, weights and numbers, as data that is drawn to SVG or to pixels."""
