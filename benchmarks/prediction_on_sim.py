"""How far is the prediction of the stock modes, and of activation peaks, from what the simulated accelerator counts?

    python -m benchmarks.prediction_on_sim

Needs a C++ compiler and no GPU; every run gives the same digits.
"""

import statistics
import warnings

from tqdm import tqdm

from benchmarks.results_file import environment, table, write_result
from tests import tiny_pipelines
from tests.simgpu import load
from tests.simgpu.prediction import RATES, both, counted_activation_bytes, deviation, predicted_activation_bytes

HEADER = ["pipeline", "mode", "predicted ms", "counted ms", "off", "predicted KB", "counted KB", "off"]


def main() -> None:
    """Predict, count, write the tables."""
    warnings.simplefilter("ignore")
    load().set_rates(**RATES)
    rows, seconds_off, peaks_off, activations = [], [], [], []
    for name in tqdm(tiny_pipelines.CALL, unit="pipeline"):
        for predicted, counted in both(name):
            seconds_off.append(deviation(predicted.seconds, counted.seconds))
            peaks_off.append(deviation(predicted.peak_bytes, counted.peak_bytes))
            rows.append(
                [
                    name,
                    predicted.mode,
                    f"{predicted.seconds * 1e3:.1f}",
                    f"{counted.seconds * 1e3:.1f}",
                    f"{seconds_off[-1]:+.1%}",
                    f"{predicted.peak_bytes / 1e3:.1f}",
                    f"{counted.peak_bytes / 1e3:.1f}",
                    f"{peaks_off[-1]:+.1%}",
                ]
            )
        predicted_peaks, counted_peaks = predicted_activation_bytes(name), counted_activation_bytes(name)
        activations += [
            [name, called, str(predicted_peaks[called]), str(num_bytes)] for called, num_bytes in counted_peaks.items()
        ]
    errors = [abs(int(row[2]) / int(row[3]) - 1) for row in activations]
    lines = [
        "# Predicted and counted on the simulated accelerator",
        "",
        *environment("python -m benchmarks.prediction_on_sim"),
        "- Predicted: from tensors without values, given the simulated accelerator's rates. Counted: virtual time and",
        "  memory counters of a second call of two steps. LTX at block level is left out: that call fails in diffusers.",
        "",
        f"Seconds: worst {max(map(abs, seconds_off)):.1%}, median {statistics.median(map(abs, seconds_off)):.1%}. "
        f"Peak: worst {max(map(abs, peaks_off)):.1%}, median {statistics.median(map(abs, peaks_off)):.1%}. "
        f"Activations: worst {max(errors):.1%}, median {statistics.median(errors):.1%}.",
        "",
        *table(HEADER, rows),
        "",
        "## Activation peak of one call (bytes)",
        "",
        *table(["pipeline", "call", "predicted", "counted"], activations),
    ]
    print(write_result("prediction_sim", lines))


if __name__ == "__main__":
    main()
