import copy
import io
from types import ModuleType

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def test_operations_give_the_cpus_numbers(sim: ModuleType) -> None:
    x, w = torch.randn(8, 16), torch.randn(32, 16)
    on_sim = torch.nn.functional.linear(x.to("sim"), w.to("sim")).softmax(-1)
    assert on_sim.device == torch.device("sim:0")
    assert torch.equal(on_sim.cpu(), torch.nn.functional.linear(x, w).softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_gives_the_cpus_numbers(sim: ModuleType, dtype: torch.dtype) -> None:
    query, key, value = torch.randn(3, 2, 4, 16, 8).to(dtype)
    mask = torch.rand(16, 16) > 0.3
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(query, key, value, attn_mask=mask)
    result = attend(query.to("sim"), key.to("sim"), value.to("sim"), attn_mask=mask.to("sim"))
    assert torch.equal(result.cpu(), expected)


def test_views_share_memory_and_cost_nothing(sim: ModuleType) -> None:
    x = torch.arange(24.0, device="sim").view(2, 3, 4)
    sim.reset()
    allocated = sim.memory_allocated()
    views = [
        x.unfold(2, 2, 1),
        x.transpose(0, 1),
        x.movedim(0, 1)[1],
        x.diagonal(0, 0, 1),
        x.squeeze().expand(2, 2, 3, 4),
        *torch.unbind(x),
        torch.view_as_complex(x.view(2, 3, 2, 2)),
    ]
    assert sim.memory_allocated() == allocated
    assert sim.timeline() == []
    x.fill_(7)
    assert all((view.cpu().real == 7).all() for view in views)


def test_results_written_into_a_given_tensor(sim: ModuleType) -> None:
    x = torch.arange(6.0, device="sim")
    out = torch.empty(0, device="sim")
    with pytest.warns(UserWarning, match="was resized"):
        out = torch.mul(torch.stack([x, x]), 2, out=torch.empty(3, device="sim"))
    assert out.tolist() == [[0, 2, 4, 6, 8, 10]] * 2
    assert x.add_(1) is x
    assert x.tolist() == [1, 2, 3, 4, 5, 6]


def test_gathers(sim: ModuleType) -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    on_sim = x.to("sim")
    index = torch.tensor([1, 0, 1])
    assert torch.equal(on_sim[index].cpu(), x[index])  # an index may stay on the CPU, as on CUDA
    assert torch.equal(on_sim[index.to("sim")].cpu(), x[index])
    assert torch.equal((on_sim > 3).nonzero().cpu(), (x > 3).nonzero())
    assert torch.equal(on_sim.topk(2).indices.cpu(), x.topk(2).indices)


def test_mixed_devices_are_refused(sim: ModuleType) -> None:
    on_sim, on_cpu = torch.ones(2, 2, device="sim"), torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="same device, but found at least two devices, sim:0 and cpu"):
        on_sim @ on_cpu
    with pytest.raises(RuntimeError, match="same device, but found at least two devices, sim:0 and sim:1"):
        on_sim @ on_cpu.to("sim:1")
    assert (on_sim * torch.tensor(2.0)).sum().item() == 8  # a scalar may come from the CPU, as on CUDA


def test_a_parameter_moves_by_its_data(sim: ModuleType) -> None:
    layer = torch.nn.Linear(3, 3)
    weight, expected = layer.weight, layer.weight.detach().clone()
    weight.data = weight.data.to("sim")
    assert layer.weight is weight
    assert weight.device == torch.device("sim:0")
    weight.data = weight.data.to("cpu")
    assert torch.equal(weight, expected)


def test_modules_are_copied_saved_and_loaded(sim: ModuleType) -> None:
    layer = torch.nn.Linear(3, 3).to("sim")
    twin = copy.deepcopy(layer)
    assert twin.weight.device == layer.weight.device
    assert torch.equal(twin.weight.cpu(), layer.weight.cpu())
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, map_location="sim:1")
    assert loaded["weight"].device == torch.device("sim:1")
    assert torch.equal(loaded["weight"].cpu(), layer.weight.cpu())


def test_generators_draw_the_cpus_numbers(sim: ModuleType) -> None:
    expected = torch.randn(5, generator=torch.Generator().manual_seed(3))
    drawn = torch.randn(5, device="sim", generator=torch.Generator("sim").manual_seed(3))
    assert torch.equal(drawn.cpu(), expected)
    torch.manual_seed(3)
    assert torch.equal(torch.randn(5, device="sim").cpu(), expected)


def test_a_generator_of_another_device_is_refused(sim: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="Expected a 'sim' device type for generator but found 'cpu'"):
        torch.randn(5, device="sim", generator=torch.Generator())


def test_two_devices(sim: ModuleType) -> None:
    first, second = torch.ones(64, 64, device="sim:0"), torch.full((64, 64), 2.0, device="sim:1")
    assert torch.equal((first.to("sim:1") @ second).cpu(), torch.full((64, 64), 128.0))
    with sim.device(1):
        assert torch.empty(1, device="sim").device == torch.device("sim:1")
        assert sim.current_device() == 1
    assert sim.current_device() == 0


def test_a_stream_brings_its_device(sim: ModuleType) -> None:
    stream = torch.Stream(device="sim:1")
    with stream:
        assert sim.current_device() == 1
        assert sim.current_stream() == stream
    assert sim.current_device() == 0
    assert sim.current_stream(1) != stream


@pytest.mark.parametrize("ask", [torch.zeros, torch.empty, torch.randn])
def test_a_third_device_is_refused(sim: ModuleType, ask: object) -> None:
    assert callable(ask)
    with pytest.raises(RuntimeError, match="invalid device ordinal sim:2; there are 2"):
        ask(3, device="sim:2")
    with pytest.raises(ValueError, match="no sim:2; there are 2"):
        sim.synchronize(2)


def test_it_is_the_accelerator(sim: ModuleType) -> None:
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() == torch.device("sim")
    assert torch.accelerator.device_count() == sim.device_count() == 2
    assert torch.get_device_module("sim") is sim
    assert sim.Stream().device == torch.device("sim:0")


def test_fake_cpu_tensors_still_work(sim: ModuleType) -> None:
    with FakeTensorMode():
        assert (torch.empty(3, 4) @ torch.empty(4, 5)).shape == (3, 5)
    assert sim.timeline() == []


def test_operations_carry_the_innermost_labelled_modules_name(sim: ModuleType) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU()).to("sim")
    x = torch.ones(1, 2, device="sim")
    sim.reset()
    with torch.no_grad(), sim.labelled(net=model):
        model(x)
    x.neg()
    assert [row.name for row in sim.timeline() if row.engine == "compute"] == [
        "aten::mm [net.0]",
        "aten::relu [net.1]",
        "aten::neg",
    ]
