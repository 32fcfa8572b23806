"""The result files that every stage writes and every table reads."""

from srpo.errors import InputError


class ResultError(InputError):
    """Result files that cannot be used: broken, against their schema, contradictory, or incomplete."""
