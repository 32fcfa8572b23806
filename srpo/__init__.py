"""Self-Referential Policy Optimization (SRPO, arXiv 2511.15605) for vision-language-action policies."""

__version__ = "0.1.0"
