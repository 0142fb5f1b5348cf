"""For all tests: the same examples every time, and the simulated accelerator as a fixture."""

from hypothesis import settings

pytest_plugins = ["tests.simgpu.fixtures"]

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
