import dataclasses

from matplotlib.colors import to_hex

from tests.reports import examples
from vramtune.reports import plots
from vramtune.reports.plots.style import component_looks
from vramtune.reports.rows import component_rows

PROFILE = examples.sdxl()


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_the_rows_are_those_of_the_table():
    assert plots.component_costs(PROFILE).rows == component_rows(PROFILE)


def test_it_says_whether_it_was_predicted_or_measured():
    assert plots.component_costs(PROFILE).title.endswith("in one call, predicted")
    measured = dataclasses.replace(PROFILE, source="measured")
    assert plots.component_costs(measured).title.endswith("in one call, measured")


def test_three_panels_with_units_in_every_bar():
    found = words(plots.draw_components(plots.component_costs(PROFILE)))
    assert {"weights", "highest activations", "copy to the GPU, once"} <= set(found)
    assert {"unet: TinyUnet, bfloat16", "4.78 GiB", "0.86 GiB", "399 ms"} <= set(found)


def test_weights_that_the_call_does_not_use_are_said():
    found = words(plots.draw_components(plots.component_costs(PROFILE)))
    assert "vae: TinyVae, bfloat16, 95 MiB of its weights used" in found
    assert "safety_checker: TinySafetyChecker, bfloat16, none of its weights used" in found
    assert {"never called", "nothing to copy"} <= set(found)


def test_bars_are_as_long_as_what_they_stand_for_and_coloured_by_component():
    axes = plots.draw_components(plots.component_costs(PROFILE))
    bars = [bar for container in axes.containers for bar in container]
    rows = component_rows(PROFILE)
    weights = bars[: len(rows)]
    longest = max(row.weight_bytes for row in rows)
    scale = max(bar.get_width() for bar in weights)
    looks = component_looks(row.component for row in rows)
    for bar, row in zip(weights, rows, strict=True):
        assert abs(bar.get_width() - scale * row.weight_bytes / longest) < 1e-9
        assert to_hex(bar.get_facecolor()) == looks[row.component].color.lower()
