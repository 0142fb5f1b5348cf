"""Tables of numbers that a layer makes at each call: made once where somebody keeps them, and never another than asked."""

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
import torch

from vramtune.tables import GGUF_UTILS, Tables, tables_kept_by

SOURCE = """
import torch

def shifts(numbers=(0, 4), dtype=torch.uint8):
    return torch.tensor(list(numbers), device="cpu", dtype=dtype)

def others():
    return torch.arange(3), torch.tensor([[1, 2]]), torch.tensor(torch.ones(1).item()), torch.uint8
"""


@pytest.fixture
def utils(monkeypatch):
    """A module as diffusers' with GGUF's functions is."""
    module = ModuleType(GGUF_UTILS)
    exec(SOURCE, vars(module))
    monkeypatch.setitem(sys.modules, GGUF_UTILS, module)
    return module


def keeper():
    return SimpleNamespace(tables=Tables())


def test_a_table_is_made_once_for_as_long_as_it_is_kept(utils):
    first, second = keeper(), keeper()
    with tables_kept_by(first):
        table = utils.shifts()
        assert utils.shifts() is table
        with tables_kept_by(second):
            assert utils.shifts() is not table
        assert utils.shifts() is table
    assert utils.shifts() is not table
    first.tables = Tables()
    with tables_kept_by(first):
        assert utils.shifts() is not table
        assert torch.equal(utils.shifts(), table)


def test_tables_that_are_known_are_made_ahead(utils):
    kept = keeper()
    with tables_kept_by(kept):
        table = utils.shifts()
    again = SimpleNamespace(tables=Tables(kept.tables.recipes))
    assert again.tables.recipes == kept.tables.recipes
    with tables_kept_by(again):
        assert utils.shifts() is not table
        assert utils.shifts() is utils.shifts()
    assert again.tables.recipes == kept.tables.recipes


def test_what_differs_is_another_table(utils):
    asked = [
        ((0, 4), torch.uint8),
        ((0, 4), torch.int32),
        ((0, 2, 4), torch.uint8),
        ((1, 0), None),
        ((True, False), None),
    ]
    asked.append(((1.0, 0.0), None))
    with tables_kept_by(keeper()):
        found = [utils.shifts(*each) for each in asked]
    expected = [utils.shifts(*each) for each in asked]
    assert [(table.dtype, table.tolist()) for table in found] == [(table.dtype, table.tolist()) for table in expected]
    assert len({id(table) for table in found}) == len(asked)


def test_one_that_was_written_to_is_made_anew(utils):
    with tables_kept_by(keeper()):
        utils.shifts().add_(1)
        assert utils.shifts().tolist() == [0, 4]
    with tables_kept_by(keeper()), torch.inference_mode():
        utils.shifts().add_(1)
        assert utils.shifts().tolist() == [0, 4]


def test_all_else_of_torch_is_torchs(utils):
    with tables_kept_by(keeper()):
        numbers, nested, scalar, dtype = utils.others()
    assert (numbers.tolist(), nested.tolist(), scalar.item(), dtype) == ([0, 1, 2], [[1, 2]], 1.0, torch.uint8)


def test_another_thread_keeps_its_own(utils):
    found = []
    with tables_kept_by(keeper()):
        table = utils.shifts()
        thread = threading.Thread(target=lambda: found.append(utils.shifts() is utils.shifts()))
        thread.start()
        thread.join()
        assert utils.shifts() is table
    assert found == [False]


def test_compiled_code_makes_its_own(utils):
    compiled = torch.compile(utils.shifts, backend="eager", fullgraph=True)
    with tables_kept_by(kept := keeper()):
        assert compiled().tolist() == [0, 4]
        assert compiled().tolist() == [0, 4]
    assert not kept.tables.recipes
    assert compiled().tolist() == [0, 4]


def test_without_that_module_nothing_is_touched(monkeypatch):
    monkeypatch.delitem(sys.modules, GGUF_UTILS, raising=False)
    with tables_kept_by(keeper()):
        assert GGUF_UTILS not in sys.modules
