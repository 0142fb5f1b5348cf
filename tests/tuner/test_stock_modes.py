from dataclasses import replace

import pytest

from tests.profiles import GIB, MIB, activity, component, device, profile, stage, weights
from tests.tuner.test_search import small, with_tiling
from vramtune.schema import Layer, ModeEstimate, Profile, Segment, Weights
from vramtune.tuner.comparison import compare_modes, compare_plan
from vramtune.tuner.frontier import trace_frontier
from vramtune.tuner.search import choose_plan
from vramtune.tuner.stock_modes import stock_modes

IN, OUT, PINNED = MIB / 0.5e9, MIB / 0.25e9, MIB / 1e9  # seconds per MiB on the test device


def modes(given_profile: Profile) -> dict[str, ModeEstimate]:
    return {mode.mode: mode for mode in stock_modes(given_profile)}


def three_encoders_twice() -> Profile:
    """SD3's calls: te1 te2 te1 te2, then the transformer, then the decoder."""
    te1, te2 = component("te1", [10 * MIB]), component("te2", [20 * MIB])
    model, vae = component("transformer", [40 * MIB]), component("vae", [5 * MIB])
    text = [stage(f"s{i}", 1, activity(te, [0.1])) for i, te in enumerate([te1, te2, te1, te2])]
    return profile(
        device(),
        [te1, te2, model, vae],
        [
            *text,
            stage("transformer", 3, activity(model, [0.2], activation_bytes=7 * MIB)),
            stage("vae.decode", 1, activity(vae, [0.3], method="decode", activation_bytes=50 * MIB)),
        ],
        offload_sequence=("te1", "te2", "transformer", "vae"),
    )


class TestResident:
    def test_holds_every_weight_used_or_not(self) -> None:
        model = replace(component("m", [10 * MIB]), parameters=weights(30 * MIB))
        found = modes(profile(device(), [model], [stage("m", 4, activity(model, [0.5]))]))["all resident"]
        assert (found.peak_bytes, found.seconds) == (30 * MIB, 2.0)


class TestModelOffload:
    def test_evicts_only_the_one_before_in_the_chain(self) -> None:
        """te1 comes back while te2 is still there: the second pass copies te1 alone."""
        found = modes(three_encoders_twice())["model offload"]
        loads = 10 + 20 + 10 + 40 + 5
        assert found.moved_bytes == loads * MIB
        assert found.moved_back_bytes == found.moved_bytes

    def test_a_pipeline_without_a_sequence_such_as_a_modular_one_has_none(self) -> None:
        assert "model offload" not in modes(replace(three_encoders_twice(), offload_sequence=()))

    def test_both_ways_block(self) -> None:
        found = modes(three_encoders_twice())["model offload"]
        copied = found.moved_bytes / MIB
        assert found.seconds == pytest.approx(4 * 0.1 + 3 * 0.2 + 0.3 + copied * (IN + OUT))

    def test_peak_is_the_largest_of_component_and_activations(self) -> None:
        assert modes(three_encoders_twice())["model offload"].peak_bytes == (5 + 50) * MIB

    def test_what_is_outside_the_chain_stays_to_the_end(self) -> None:
        base = three_encoders_twice()
        found = modes(replace(base, offload_sequence=("te1", "te2", "vae")))["model offload"]
        assert found.peak_bytes == (40 + 5 + 50) * MIB


class TestStateless:
    def test_sequential_brings_each_layer_in_and_drops_it(self) -> None:
        found = modes(small())["sequential offload"]
        layers = 4 * 20 + 20 * 16 * 10 + 4 * 5
        assert found.moved_bytes == layers * MIB
        assert found.moved_back_bytes == 0
        assert found.seconds == pytest.approx(found.compute_seconds + layers * IN)

    def test_leaf_groups_without_streams_are_copied_back(self) -> None:
        found = modes(small())["group offload, leaf"]
        assert found.moved_back_bytes == found.moved_bytes
        assert found.seconds == pytest.approx(found.compute_seconds + found.moved_bytes / MIB * (IN + OUT))

    def test_blocks_with_a_stream_overlap_one_ahead(self) -> None:
        """Blocks of 0.1 s and 100 MiB (0.105 s): the first copy is exposed, then the longer of the two."""
        model = component("m", [100 * MIB] * 5)
        found = modes(profile(device(), [model], [stage("m", 1, activity(model, [0.1] * 5))]))
        copy = 100 * PINNED
        assert found["group offload, block, stream"].seconds == pytest.approx(5 * copy + 0.1)
        assert found["group offload, block, stream"].peak_bytes == 200 * MIB
        assert found["group offload, block"].peak_bytes == 100 * MIB

    def test_the_root_goes_in_and_out_with_every_call_even_with_a_stream(self) -> None:
        blocks = component("m", [100 * MIB] * 2)
        norm = Layer(name="norm", parameters=weights(30 * MIB), group=0, block=None)
        model = replace(blocks, layers=(*blocks.layers, norm))
        found = modes(profile(device(), [model], [stage("m", 4, activity(model, [0.1] * 3))]))
        assert found["group offload, block, stream"].moved_back_bytes == 4 * 30 * MIB

    def test_buffers_in_no_block_move_twice_with_it_and_stay_under_sequential_offload(self) -> None:
        blocks = component("m", [100 * MIB] * 2)
        table = Layer(name="pos", parameters=Weights(), buffers=weights(7 * MIB), group=0, block=None)
        model = replace(blocks, layers=(*blocks.layers, table), buffers=weights(7 * MIB))
        call = activity(model, [0.1] * 3)
        found = modes(profile(device(), [model], [stage("m", 1, call)]))
        assert found["group offload, block"].moved_bytes == (200 + 2 * 7) * MIB
        assert found["group offload, block"].peak_bytes == (100 + 2 * 7) * MIB
        assert found["sequential offload"].moved_bytes == 200 * MIB
        assert found["sequential offload"].peak_bytes == (100 + 7) * MIB

    def test_a_named_shell_moves_its_own_loose_layers_only(self) -> None:
        """An AutoencoderKL's decoder: its blocks move by themselves, its other layers around its call."""
        plain = component("vae", [10 * MIB] * 3)
        loose = replace(plain.layers[0], block=None, shell="decoder")
        inside = replace(plain.layers[1], block="decoder.up_blocks.0", shell="decoder")
        other = replace(plain.layers[2], block=None, shell="post_quant_conv")
        vae = replace(plain, layers=(loose, inside, other))
        call = replace(
            activity(vae, [0.1], method="decode", layers=[0]),
            segments=tuple(Segment(layer=n, layer_seconds=0.1, layer_activation_bytes=0) for n in (2, 0, 1)),
        )
        found = modes(profile(device(), [vae], [stage("vae.decode", 1, call)]))["group offload, block"]
        assert found.moved_bytes == 30 * MIB
        assert found.peak_bytes == 20 * MIB

    def test_a_decode_is_never_prefetched_by_leaf(self) -> None:
        vae = component("vae", [10 * MIB] * 3)
        call = activity(vae, [0.1] * 3, method="decode")
        found = modes(profile(device(), [vae], [stage("vae.decode", 1, call)]))
        assert found["group offload, leaf, stream"].seconds == pytest.approx(0.3 + 30 * PINNED)


TILING = ("vae_tiling",)


class TestComparison:
    def test_the_plan_leads_and_none_that_fits_is_faster(self) -> None:
        comparison = compare_modes(small(), 250 * MIB)
        plan, *stock = comparison.modes
        assert plan.mode == "vramtune"
        assert plan.fits
        assert comparison.bound_seconds <= plan.seconds
        assert all(plan.seconds <= mode.seconds * 1.01 for mode in stock if mode.fits)

    def test_where_no_plan_fits_the_stock_modes_remain(self) -> None:
        comparison = compare_modes(small(), 10 * MIB)
        assert comparison.bound_seconds is None
        assert {mode.fits for mode in comparison.modes} == {False}

    def test_they_are_predicted_under_the_permissions_that_the_plan_uses(self) -> None:
        comparison = compare_modes(with_tiling(), 100 * MIB, allow=("vae_tiling",))
        assert comparison.permissions == ("vae_tiling",)
        assert comparison.stock == stock_modes(with_tiling(), 100 * MIB, permissions=("vae_tiling",))
        untiled, tiled = ({mode.mode: mode for mode in stock_modes(with_tiling(), permissions=p)} for p in ((), TILING))
        leaf = "group offload, leaf, stream"
        assert tiled[leaf].peak_bytes < untiled[leaf].peak_bytes
        assert compare_modes(with_tiling(), GIB, allow=TILING).stock == stock_modes(with_tiling(), GIB)

    def test_where_no_plan_fits_they_may_have_all_that_was_allowed(self) -> None:
        comparison = compare_modes(with_tiling(), 10 * MIB, allow=("vae_tiling",))
        assert (comparison.plan, comparison.permissions) == (None, ("vae_tiling",))
        assert {mode.permissions for mode in comparison.modes} == {("vae_tiling",)}

    def test_a_frontier_has_them_under_what_its_points_use(self) -> None:
        curve = trace_frontier(with_tiling(), allow=("vae_tiling",))
        assert {mode.permissions for mode in curve.stock} == {point.permissions for point in curve.points}

    def test_what_brings_weights_back_needs_the_hosts_memory_for_all_of_them(self) -> None:
        weight_bytes = sum(component.weights.num_bytes for component in small().components)
        plan = choose_plan(small(), 250 * MIB)
        enough, short = (compare_plan(small(), replace(plan, ram_bytes=weight_bytes - less)) for less in (0, 1))
        assert [mode.fits for mode in enough.stock] == [mode.fits for mode in stock_modes(small(), 250 * MIB)]
        fitting = {mode.mode for mode in short.stock if mode.fits}
        assert fitting <= {"all resident"}
        assert any(mode.fits for mode in enough.stock)

    def test_sequential_offload_leaves_what_is_in_files_there(self) -> None:
        parts = tuple(replace(c, file_bytes=c.weights.num_bytes) for c in small().components)
        found = modes(replace(small(), components=parts))
        assert found["sequential offload"].host_bytes == 0
        assert found["group offload, leaf"].host_bytes == sum(c.weights.num_bytes for c in parts)

    def test_without_a_budget_nothing_is_said_of_fitting(self) -> None:
        assert {mode.fits for mode in stock_modes(small())} == {None}

    def test_all_count_context_and_workspaces(self) -> None:
        on = device(context_bytes=GIB, workspace_bytes=MIB)
        more = modes(replace(small(), device=on))
        for name, mode in modes(small()).items():
            assert more[name].peak_bytes == mode.peak_bytes + GIB + MIB


class TestBesideAPlan:
    def test_it_is_the_plan_that_is_there_and_stock_modes_may_use_the_whole_budget(self) -> None:
        plan = choose_plan(small(), 250 * MIB, margin_fraction=0.1)
        found = compare_plan(small(), plan)
        assert found.plan is plan
        assert found.plan_mode is not None
        assert found.plan_mode.seconds == plan.estimate.seconds
        assert found.plan_mode.peak_bytes == plan.estimate.peak_bytes
        assert (found.asked_bytes, found.budget_bytes) == (250 * MIB, 250 * MIB)
        assert found.stock == stock_modes(small(), 250 * MIB)

    def test_a_comparison_carries_what_was_asked_and_what_the_card_gives(self) -> None:
        card = replace(small(), device=replace(small().device, usable_bytes=300 * MIB))
        found = compare_modes(card, 400 * MIB)
        assert (found.asked_bytes, found.budget_bytes) == (400 * MIB, 300 * MIB)
        assert all(mode.fits == (mode.peak_bytes <= 300 * MIB) for mode in found.modes)
        assert compare_modes(card, 60 * MIB).plan is None
