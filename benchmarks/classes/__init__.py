"""Every pipeline class that diffusers tests: is it predicted, tuned, streamed and given back as it should be?

`python -m benchmarks.classes --help` says how to run it. `tests/classes` runs the same checks (`checks.py`) on tiny
pipelines of its own.
"""
