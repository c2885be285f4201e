"""Settings of all tests."""

from hypothesis import settings

# the same examples in every run, and no verdict by the clock of a busy machine
settings.register_profile("scalablevit", derandomize=True, deadline=None)
settings.load_profile("scalablevit")
