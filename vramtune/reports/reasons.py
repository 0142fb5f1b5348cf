"""The words of a `Reason`."""

from vramtune.schema import Reason
from vramtune.units import format_bytes, format_seconds


def sentence(reason: Reason) -> str:
    """One finding in one sentence."""
    sizes = {name: format_bytes(num) for name, num in reason.num_bytes.items()}
    times = {name: format_seconds(seconds) for name, seconds in reason.seconds.items()}
    match reason.kind:
        case "permission_used":
            return f"Uses {reason.permission!r}, which you allowed: the output changes slightly. {_gain(sizes, times)}".strip()
        case "compute_bound":
            return "Compute sets the pace: copies are hidden behind it, or there are none."
        case "copy_bound":
            verb, moved = ("streams", "streamed") if "streamed" in sizes else ("loads", "loaded")
            return (
                f"Stage {reason.stage!r} waits longest for copies: it {verb} {sizes[moved]} ({times['copies']} of "
                f"copying beside {times['compute']} of compute) and loses {times['exposed']}."
            )
        case "host_bound":
            return (
                f"Stage {reason.stage!r} waits longest for the host, which takes {times['host']} to ask for its operations and "
                f"copies beside {times['compute']} of compute: it loses {times['exposed']}."
            )
        case "staging_bound":
            return (
                f"Stage {reason.stage!r} waits longest for weights that are not page-locked: the host takes {times['staging']} to "
                f"stage {sizes['staged']} beside {times['compute']} of compute, and it loses {times['exposed']}."
            )
        case "disk_bound":
            return (
                f"Stage {reason.stage!r} waits longest for its files, which do not fit the host's memory: {sizes['read']} are read "
                f"in {times['reading']} beside {times['compute']} of compute, and it loses {times['exposed']}."
            )
        case "peak":
            return (
                f"Stage {reason.stage!r} needs most: {sizes['weights']} of weights and slots, {sizes['others']} of "
                f"activations, pipeline tensors, workspaces and context; {sizes['free']} are left."
            )
        case "excluded":
            return (
                f"{reason.component} is resident because the pipeline excludes it from offload: {sizes['weights']} in "
                "every stage."
            )
        case "not_resident":
            return (
                f"{reason.component} is not resident: keeping the other {sizes['missing']} of it {_effect(reason)}; "
                f"its stages wait {times['exposed']} for copies."
            )
        case "all_resident":
            return "Everything the call uses stays on the GPU: more memory would save nothing."
        case "more_memory":
            return f"One GiB more could save at most {times['one_gib']}; unlimited memory {times['unlimited']}."


def _gain(sizes: dict[str, str], times: dict[str, str]) -> str:
    """What a permission is used for."""
    if "smallest" in sizes:
        return f"Without it nothing fits in less than {sizes['smallest']}."
    return f"It saves {times['saves']} of a call." if "saves" in times else ""


def _effect(reason: Reason) -> str:
    """What would happen if the component were resident."""
    over = reason.num_bytes["over_budget"]
    if over <= 0:
        return "would fit, and save next to nothing"
    return f"would put stage {reason.stage!r} {format_bytes(over)} over the budget"
