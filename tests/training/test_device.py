"""Device and precision: the default of this machine, and what is refused."""

from pathlib import Path

import pytest
import torch

from clip_core.errors import UsageError
from clip_core.training.device import autocast, choose_device, choose_precision, describe, memory_mb, system_figures

CPU = torch.device("cpu")
PRESENT = [name for name, there in [("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()),
                                    ("cpu", True)] if there]  # fmt: skip
ABSENT = [name for name in ("cuda:99", "mps", "meta", "xpu") if name not in PRESENT]


def test_the_default_device_is_the_fastest_kind_that_there_is() -> None:
    assert choose_device(None).type == PRESENT[0]


@pytest.mark.parametrize("name", PRESENT)
def test_a_device_that_there_is_can_be_chosen_by_name(name: str) -> None:
    assert choose_device(name).type == name


@pytest.mark.parametrize("name", ABSENT)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError, match=rf"--device {name} is not available; this machine has .*cpu\."):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_what_is_no_device_is_refused_with_what_may_be_given(name: str) -> None:
    with pytest.raises(UsageError, match=r"--device is '.*'; it should be cuda, cuda:N, mps or cpu\."):
        choose_device(name)


def test_on_a_cpu_both_precisions_may_be_chosen() -> None:
    assert choose_precision(CPU, "fp32") == "fp32"
    assert choose_precision(CPU, "bf16") == "bf16"


def test_the_default_precision_of_a_cpu_is_bf16_where_it_has_the_instructions() -> None:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    native = "avx512_bf16" in flags or "amx_tile" in flags
    assert choose_precision(CPU, None) == ("bf16" if native else "fp32")


@pytest.mark.parametrize(("native", "default"), [(True, "bf16"), (False, "fp32")])
def test_the_default_precision_of_a_gpu_is_bf16_where_it_has_it(
    native: bool, default: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert choose_precision(torch.device("cuda"), None) == default


def test_bf16_is_refused_on_a_gpu_without_it() -> None:
    with pytest.raises(
        UsageError, match=r"--precision bf16 is not supported on Apple GPU \(mps\); use --precision fp32"
    ):
        choose_precision(torch.device("mps"), "bf16")
    assert choose_precision(torch.device("mps"), None) == "fp32"


def test_autocast_multiplies_in_bf16_and_in_fp32_changes_nothing() -> None:
    linear, rows = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with autocast(CPU, "bf16"):
        assert linear(rows).dtype is torch.bfloat16
    with autocast(CPU, "fp32"):
        assert linear(rows).dtype is torch.float32


def test_memory_and_the_figures_of_the_machine_are_of_this_process(tmp_path: Path) -> None:
    before = memory_mb(CPU)
    held = torch.ones(1 << 26)  # 268 MB, written to
    assert memory_mb(CPU) - before > 200
    figures = system_figures(CPU, tmp_path)
    assert figures["resident_mb"] > 200
    assert figures["disk_free_gb"] > 0
    assert figures["cpu_percent"] >= 0
    assert held[0] == 1


def test_a_cpu_is_described_by_its_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert describe(CPU) == "CPU, 2 threads"
        torch.set_num_threads(1)
        assert describe(CPU) == "CPU, 1 thread"
    finally:
        torch.set_num_threads(before)
