"""What the public functions refuse before they do anything."""

from collections.abc import Collection

from vramtune.errors import UsageError
from vramtune.schema import Measurement, Plan, Profile, Trace

_MADE_BY = {
    Trace: "`vramtune.trace` makes one, `vramtune.Trace.load` reads one from a file",
    Profile: "`vramtune.profile` makes one, `vramtune.Profile.load` reads one from a file",
    Plan: "`vramtune.plan` makes one, `vramtune.Plan.load` reads one from a file",
    Measurement: "A tuned pipeline's `measured` is one",
}


def expect(kind: type[Trace] | type[Profile] | type[Plan] | type[Measurement], noun: object) -> None:
    """Refuse what is not such a noun: a pipeline, or the name of a file, is easily taken for one."""
    if not isinstance(noun, kind):
        raise UsageError(f"Expected a {kind.__name__}; got {type(noun).__name__}. {_MADE_BY[kind]}.")


def permission_names(allow: object) -> tuple[str, ...]:
    """The permissions, one or several, which `search.check` then knows or does not."""
    names = (allow,) if isinstance(allow, str) else allow
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise UsageError(
            f'`allow` takes a permission\'s name, or several: "vae_tiling", ["vae_tiling"]; got {allow!r}.'
        )
    return tuple(names)
