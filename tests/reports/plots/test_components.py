from matplotlib.colors import to_hex

from tests.reports import examples
from vramtune.reports import plots
from vramtune.reports.plots.style import component_looks
from vramtune.reports.rows import component_rows

PROFILE = examples.sdxl()


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_the_plot_has_the_rows_of_the_table():
    assert plots.component_costs(PROFILE).rows == component_rows(PROFILE)


def test_the_title_says_that_the_costs_are_predicted():
    assert plots.component_costs(PROFILE).title == (
        "StableDiffusionXLPipeline on GeForce RTX 4060:\nwhat each component costs in one call, predicted"
    )


def test_each_panel_has_a_heading_and_each_bar_its_value_with_a_unit():
    written = words(plots.draw_components(plots.component_costs(PROFILE)))
    assert {"weights", "peak activations", "time to copy to the GPU"} <= set(written)
    assert {"unet: TinyUnet, bfloat16", "4.78 GiB", "0.86 GiB", "399 ms"} <= set(written)


def test_a_component_whose_weights_are_partly_or_never_used_says_so():
    written = words(plots.draw_components(plots.component_costs(PROFILE)))
    assert "vae: TinyVae, bfloat16, 95 MiB of its weights used" in written
    assert "safety_checker: TinySafetyChecker, bfloat16, none of its weights used" in written
    assert {"never called", "nothing to copy"} <= set(written)


def test_bars_are_proportional_to_bytes_and_coloured_by_component():
    axes = plots.draw_components(plots.component_costs(PROFILE))
    bars = [bar for container in axes.containers for bar in container]
    rows = component_rows(PROFILE)
    weights = bars[: len(rows)]
    most = max(row.weight_bytes for row in rows)
    longest = max(bar.get_width() for bar in weights)
    looks = component_looks(row.component for row in rows)
    for bar, row in zip(weights, rows, strict=True):
        assert abs(bar.get_width() - longest * row.weight_bytes / most) < 1e-9
        assert to_hex(bar.get_facecolor()) == looks[row.component].color.lower()
