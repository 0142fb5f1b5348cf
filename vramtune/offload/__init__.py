"""Making it so: a pipeline and a plan become an installation.

`install.py` is the way in and out; `conductor.py` moves the pipeline from stage to stage; `stream.py` copies;
`host.py` holds the masters.
"""
