"""Settings for all tests."""

from hypothesis import settings

# No deadline: a busy machine is no fault. Derandomised: a failure seen once is seen again.
settings.register_profile("detkit", deadline=None, derandomize=True)
settings.load_profile("detkit")
