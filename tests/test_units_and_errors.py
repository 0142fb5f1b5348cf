import pytest

from vramtune.errors import FEW, BudgetError, FileError, NoAcceleratorError, TraceError, UnknownNameError, UsageError
from vramtune.units import GIB, budget_bytes, format_bytes, format_seconds


class TestBudget:
    @pytest.mark.parametrize(("given", "expected"), [(8, 8 * GIB), (11.5, 12_348_030_976), (0.5, GIB // 2)])
    def test_is_in_gibibytes(self, given: float, expected: int) -> None:
        assert budget_bytes(given) == expected

    @pytest.mark.parametrize("given", [0, -8, float("nan"), float("inf"), "8", None, True, [8]])
    def test_anything_else_is_refused_with_what_was_given(self, given: object) -> None:
        with pytest.raises(UsageError, match="vram_gb") as raised:
            budget_bytes(given)
        assert repr(given) in str(raised.value)


class TestFormats:
    @pytest.mark.parametrize(
        ("num_bytes", "text"),
        [(0, "0 B"), (700, "700 B"), (4096, "4 KiB"), (34 * 2**20, "34 MiB"), (8 * GIB, "8.00 GiB")],
    )
    def test_bytes(self, num_bytes: int, text: str) -> None:
        assert format_bytes(num_bytes) == text

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0, "0 s"),
            (-1e-12, "0 s"),
            (4e-7, "0 s"),
            (8e-5, "80 µs"),
            (9.9999e-4, "1 ms"),
            (0.9999, "1.00 s"),
            (9.9999, "10.0 s"),
            (0.045, "45 ms"),
            (1.234, "1.23 s"),
            (12.34, "12.3 s"),
            (125, "2 min 05 s"),
            (3599.4, "59 min 59 s"),
            (3599.6, "1 h 00 min"),
            (10291, "2 h 52 min"),
        ],
    )
    def test_seconds(self, seconds: float, text: str) -> None:
        assert format_seconds(seconds) == text


class TestTree:
    def test_bad_arguments_are_also_value_errors_and_failures_runtime_errors(self) -> None:
        assert issubclass(UsageError, ValueError)
        assert issubclass(FileError, UsageError)
        assert issubclass(UnknownNameError, UsageError)
        assert issubclass(TraceError, RuntimeError)
        assert issubclass(NoAcceleratorError, RuntimeError)
        assert not issubclass(BudgetError, ValueError)

    def test_near_names_are_offered_and_all_where_none_is_near(self) -> None:
        many = [*(f"flux {number}" for number in range(FEW)), "sdxl"]
        assert "Did you mean: sdxl." in str(UnknownNameError("model", "sdxll", many))
        assert f"Known names: {', '.join(many)}" in str(UnknownNameError("model", "qqq", many))

    def test_a_few_names_are_all_listed(self) -> None:
        known = ["text_encoder", "unet", "vae"]
        assert "Known names: text_encoder, unet, vae." in str(UnknownNameError("component", "encoder", known))
