from tests.simgpu.fixtures import built_sim, no_garbage, sim

__all__ = ["built_sim", "no_garbage", "sim"]
