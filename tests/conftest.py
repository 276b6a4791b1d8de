"""Settings that all tests share."""

from hypothesis import settings

# No deadline: a machine that is busy with something else is no failure. The same examples at every run: a failure can be repeated.
settings.register_profile("bitalloc", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("bitalloc")
