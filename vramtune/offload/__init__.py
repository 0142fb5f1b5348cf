"""A plan at work on a pipeline.

`install.py` is the way in, `runtime.py` the plan at work and the way out; `binding.py` finds the plan's groups in the
pipeline; `conductor.py` moves the pipeline from stage to stage; `stream.py` copies; `groups.py` holds the weights.
"""
