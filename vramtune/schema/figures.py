"""What figures of saved nouns may be: a file with any other is refused when it is read. Bounds are far beyond any GPU."""

from typing import Annotated

from msgspec import Meta

Bytes = Annotated[int, Meta(ge=0, le=2**60)]
Index = Annotated[int, Meta(ge=0, le=2**31)]
Tensors = Annotated[int, Meta(ge=0, le=2**20)]
"""A number of tensors: what the allocator takes for them is replayed one by one."""
Count = Annotated[int, Meta(ge=1, le=2**31)]
"""How many there are of something that is there."""
Repeats = Annotated[int, Meta(ge=1, le=1000)]
"""How often something is done that is written out in full each time."""
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Saving = Annotated[float, Meta(ge=-1e12, le=1e12)]
"""Seconds, or a difference of them."""
PerSecond = Annotated[float, Meta(ge=1, le=1e24)]
Fraction = Annotated[float, Meta(gt=1e-6, le=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Factor = Annotated[float, Meta(ge=1, le=100)]
Times = Annotated[float, Meta(ge=1e-3, le=1e3)]
"""One figure by another of its kind."""
Total = Annotated[int, Meta(ge=-(2**62), le=2**62)]
"""Bytes over a whole call, or a difference of them."""
Budget = Annotated[int, Meta(ge=1, le=2**60)]
"""Bytes that shares are taken of."""
