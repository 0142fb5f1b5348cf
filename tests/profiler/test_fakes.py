import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vramtune.profiler.fakes import FakeOperations, fake_like, fake_view, layout_of, new_fake, storage_id

aten = torch.ops.aten
MODE = FakeTensorMode(allow_non_fake_inputs=True)


def fake(*size, dtype=torch.float32):
    return fake_like(torch.empty(size, dtype=dtype), MODE)


def as_told(tensor, inputs):
    """Everything that a trace looks at: the layout, and whose storage it is in."""
    shared = [number for number, other in enumerate(inputs) if storage_id(other) == storage_id(tensor)]
    return layout_of(tensor), shared, tensor.device, tensor.requires_grad


def outcome(run, inputs):
    out = run()
    items = out if isinstance(out, list | tuple) else [out]
    return type(out), [item if item is None else as_told(item, inputs) for item in items]


OPERATIONS = {
    "pointwise": lambda x: (aten.add.Tensor, (x, x), {"alpha": 2}),
    "pointwise of a number": lambda x: (aten.mul.Tensor, (x, 0.25), {}),
    "promotion by a number": lambda x: (aten.add.Tensor, (x.to(torch.int32), 0.25), {}),
    "in place": lambda x: (aten.add_.Tensor, (x, 1.5), {}),
    "in place of a view": lambda x: (aten.copy_.default, (x[1:3], x[:2]), {}),
    "many in place": lambda x: (aten._foreach_add_.Scalar, ([x, x[1:]], 1.5), {}),
    "part": lambda x: (aten.slice.Tensor, (x[1:], 0, 1, 3), {}),
    "part of a part": lambda x: (aten.select.int, (x.transpose(0, 1)[2:], 1, 3), {}),
    "parts": lambda x: (aten.split.Tensor, (x[1:], 2, 1), {}),
    "other dtype": lambda x: (aten.view.dtype, (x[1:], torch.int32), {}),
    "complex": lambda x: (aten.view_as_complex.default, (x.view(2, 2, -1, 2)[1:],), {}),
    "by strides": lambda x: (aten.as_strided.default, (x[2:], (2, 2), (4, 1), 3), {}),
    "unsafe view": lambda x: (aten._unsafe_view.default, (x[1:], (3, 2, 2, 4)), {}),
    "transposed copy": lambda x: (aten.clone.default, (x.transpose(0, 1),), {}),
    "several results": lambda x: (aten.native_layer_norm.default, (x, (8,), None, None, 1e-5), {}),
    "no tensors": lambda x: (aten.full.default, ((3, 5), 1.0), {"dtype": torch.float16, "device": "cpu"}),
    "list of tensors": lambda x: (aten.cat.default, ([x, x[1:]], 0), {}),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_answered_again_returns_what_it_returned_and_what_torch_returns(name):
    operations, x = FakeOperations(MODE), fake(4, 2, 8)
    with torch.no_grad(), MODE:
        other = fake(6, 4, 2, 8)[5]  # the same shape elsewhere in a storage
        func, args, kwargs = OPERATIONS[name](x)
        expected = outcome(lambda: func(*args, **kwargs), [x])
        assert outcome(lambda: operations.run(func, args, kwargs), [x]) == expected
        assert outcome(lambda: operations.run(func, args, kwargs), [x]) == expected
        func, args, kwargs = OPERATIONS[name](other)
        assert outcome(lambda: operations.run(func, args, kwargs), [other]) == outcome(
            lambda: func(*args, **kwargs), [other]
        )


def test_which_inputs_share_a_storage_is_part_of_the_question():
    operations, x = FakeOperations(MODE), fake(4, 8)
    with torch.no_grad(), MODE:
        for given in (x, x[:]), (x, fake(4, 8)), (fake(4, 8), x):
            out = operations.run(aten.add_.Tensor, given, {})
            assert out is given[0]


def test_an_error_comes_each_time():
    operations = FakeOperations(MODE)
    with torch.no_grad(), MODE:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="reduction dim"):
                operations.run(aten.mm.default, (fake(2, 3), fake(2, 3)), {})
            with pytest.raises(RuntimeError, match="invalid"):
                operations.run(aten.view.default, (fake(2, 3), (4,)), {})


def test_a_fake_is_what_torch_makes_of_one():
    made = fake(2, 3)
    with MODE:
        expected = torch.empty(2, 3)
    assert type(made) is FakeTensor
    assert vars(made).keys() == vars(expected).keys()
    assert torch._C._dispatch_keys(made) == torch._C._dispatch_keys(expected)
    assert isinstance(fake_like(nn.Parameter(torch.empty(2), requires_grad=False), MODE), nn.Parameter)
    assert not isinstance(made, nn.Parameter)


def test_a_view_keeps_its_storage_alive_and_lets_it_go():
    base = fake(4, 8)
    storage = weakref.ref(base.untyped_storage())
    view = fake_view(base, torch.float32, (2, 8), (8, 1), 16, MODE)
    del base
    assert storage() is not None
    del view
    assert storage() is None


def test_a_new_fake_may_have_more_storage_than_elements():
    layout = layout_of(torch.empty(10, 8)[2:4, ::2])
    assert layout_of(new_fake(layout, MODE)) == layout
