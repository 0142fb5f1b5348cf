from hypothesis import given
from hypothesis import strategies as st

from vramtune.reports.plots.style import COMPONENT_LOOKS, FAMILIAR, OWNER_LOOKS, component_looks, highest_drawn

NAMES = st.lists(st.sampled_from([*FAMILIAR, "controlnet", "image_encoder", "prior"]), unique=True)


@given(NAMES)
def test_familiar_components_look_the_same_in_every_pipeline(names):
    looks = component_looks(names)
    assert list(looks) == names
    assert all(looks[name] == COMPONENT_LOOKS[FAMILIAR[name]] for name in names if name in FAMILIAR)


@given(NAMES)
def test_no_two_components_share_a_look_while_there_are_looks_left(names):
    drawn = ["transformer" if name == "unet" else name for name in names]
    looks = component_looks(dict.fromkeys(drawn))
    if len(looks) <= len(COMPONENT_LOOKS):
        assert len(set(looks.values())) == len(looks)


def test_owners_of_memory_differ_in_colour_and_also_in_grey():
    looks = [*COMPONENT_LOOKS, *OWNER_LOOKS.values()]
    assert len({look.color for look in looks}) == len(looks)
    plain = [_lightness(look.color) for look in looks if not look.hatch]
    hatches = [look.hatch for look in looks if look.hatch]
    assert len(set(hatches)) == len(hatches)
    assert min(abs(a - b) for i, a in enumerate(plain) for b in plain[:i]) > 0.15


def _lightness(color: str) -> float:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


@given(st.floats(0.1, 100), st.floats(0.1, 100))
def test_the_axis_shows_the_whole_peak_and_a_far_budget_does_not_dwarf_it(peak, budget):
    highest = highest_drawn(peak, budget)
    assert peak <= highest <= 1.5 * peak
    assert highest in (peak, budget)
