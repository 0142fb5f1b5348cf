from torch import nn

from vramtune.offload.joined import join


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)

    def forward(self, x):
        return self.second(self.first(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


PLANNED = {"embed": "root", "blocks.0.first": "g1", "blocks.0.second": "g1", "blocks.1.first": "g2"}
UNUSED = {"blocks.1.second"}


def joined(model: nn.Module, *owners: str) -> dict[str, tuple[str, ...]]:
    return join(owners, dict(model.named_modules()), PLANNED, UNUSED, "root")


def test_a_module_joins_the_group_of_the_one_before_it():
    model = Model()
    model.blocks[0].fused = nn.Linear(2, 2)
    assert joined(model, "blocks.0.fused") == {"g1": ("blocks.0.fused",)}


def test_a_whole_module_that_came_in_goes_with_all_in_it():
    model = Model()
    model.blocks.append(Block())
    assert joined(model, "blocks.2.first", "blocks.2.second") == {"g2": ("blocks.2",)}


def test_what_has_no_forward_joins_the_root():
    model = Model()
    model.blocks[0].scales = nn.ParameterDict({"a": nn.Parameter(model.embed.weight[0].detach())})
    assert joined(model, "blocks.0.scales") == {"root": ("blocks.0.scales",)}


def test_weights_of_a_module_that_was_there_join_the_root():
    assert joined(Model(), "blocks.0", "") == {"root": ("blocks.0", "")}


def test_in_the_root_group_each_module_is_named_that_has_weights():
    model = Model()
    model.embed.adapter = nn.ModuleDict({"a": Block()})
    owners = ("embed.adapter.a.first", "embed.adapter.a.second")
    assert joined(model, *owners) == {"root": owners}


def test_where_nothing_planned_is_left_all_joins_the_root():
    assert join(["first", "second"], dict(Block().named_modules()), PLANNED, (), "root") == {
        "root": ("first", "second")
    }
