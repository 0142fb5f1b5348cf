"""The seconds that one operation takes on a device: a roofline on the GPU, and the host's time to issue it."""

from vramtune.schema import Device, Work

INT8_TIMES_FLOAT16 = 2
"""Rate of int8 beside float16's by the data sheets of Turing and later, where a device does not say it."""
LAYOUT_PASSES = 2
"""cuDNN reads and writes contiguous images once more on each side of a convolution in 16 bits or TF32, into the order
that its kernels want (`benchmarks/calls_on_gpu.py`, H100)."""
HEAVY_OPERATIONS = 2.5
"""Host time of a matrix product, convolution or attention, with the module and the views around it, in operations of
other kinds: a fit over 21 calls of eight models (`benchmarks/calls_on_gpu.py`, H100), 55 beside 21 microseconds."""


def work_seconds(work: Work, device: Device) -> float:
    """Roofline on the GPU: the slowest of arithmetic, traffic and elements one by one, plus the launch.

    `max(flops / (rate(dtype) * efficiency(kind)), bytes / (bandwidth * efficiency), elements) + kernels * launch`. A
    dtype without a rate on the device is computed at the rate of float32, a kind of attention without an efficiency at
    that of `attention`. What comes one after the other is added: a convolution's operands are put into another order
    by kernels of their own, and group norm goes through its elements for the statistics first. All of it as many times
    as calls on the device were seen to take (`Device.times_predicted`).
    """
    return device.times_predicted * _work_seconds(work, device)


def _work_seconds(work: Work, device: Device) -> float:
    compute = 0.0
    if work.flops:
        rate = _flops_per_second(work, device)
        shares = device.efficiency_fraction
        share = shares["attention"] if work.kind.endswith("attention") else shares[work.kind]
        compute = work.flops / (rate * shares.get(work.kind, share))
    bandwidth = device.memory_bytes_per_second * device.efficiency_fraction["memory"]
    traffic = work.num_bytes / bandwidth
    before = (
        LAYOUT_PASSES * (work.layout_in_bytes + work.layout_out_bytes) / bandwidth if device.kernels == "cuda" else 0.0
    )
    launches = work.num_kernels * device.launch_seconds + before
    if not work.num_elements or work.kind not in device.elements_per_second:
        return max(compute, traffic) + launches
    busy = min(work.num_blocks or device.multiprocessors, device.multiprocessors)
    elements = work.num_elements / (busy * device.elements_per_second[work.kind])
    if work.kind == "group_norm":
        return elements + traffic + launches
    return max(compute, traffic, elements) + launches


def _flops_per_second(work: Work, device: Device) -> float:
    """The peak for a dtype; PyTorch's float32 attention runs as three products in TF32 where that is faster.

    (CUTLASS's `OpMultiplyAddFastF32` in `ATen/native/transformers/cuda/mem_eff_attention`.)
    """
    rates = device.flops_per_second
    rate = rates.get(work.dtype, rates["float32"])
    if work.dtype == "int8" and "int8" not in rates:
        rate = max(rate, INT8_TIMES_FLOAT16 * rates.get("float16", 0.0))
    if work.kind.endswith("attention") and work.dtype == "float32":
        return max(rate, rates.get("tensorfloat32", 0.0) / 3)
    return rate


def host_seconds(work: Work, device: Device) -> float:
    """What the host takes to issue an operation: `operation_seconds`, of heavy ones more often."""
    is_heavy = work.kind in ("matmul", "convolution", "group_norm") or work.kind.endswith("attention")
    return device.times_predicted * device.operation_seconds * (HEAVY_OPERATIONS if is_heavy else 1)
