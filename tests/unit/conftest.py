"""Property tests: no deadline, because shared machines stall, and a budget that keeps the suite quick."""

from hypothesis import settings

settings.register_profile("srpo", deadline=None, max_examples=50)
settings.load_profile("srpo")
