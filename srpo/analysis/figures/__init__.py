"""Figures: `make` of a module gives the numbers and the figure."""
