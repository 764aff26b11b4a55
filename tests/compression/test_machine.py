"""What this machine is said to be able to do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model_opt.compression.machine import (
    BF16,
    INSTRUCTION_SETS,
    INT8_DOT,
    best_instruction_set,
    capabilities,
    extras,
    inspect,
    usable_processors,
)
from model_opt.compression.runtimes.declared import libraries
from model_opt.errors import InvalidInput
from model_opt.processors import usable_memory

TORCH_NAMES = {"avx512f": "avx512_f", "asimddp": "dot"}
"""Linux's name of a capability → torch's, where they differ."""


def test_the_processor_has_a_class_and_a_best_instruction_set() -> None:
    machine = inspect()
    assert machine.device == "cpu"
    assert len(machine.device_class.split()) >= 2
    assert machine.device_class.endswith(best_instruction_set())
    assert inspect() == machine


def test_the_system_says_of_the_processor_what_torch_finds_out() -> None:
    if not capabilities():
        pytest.skip("this system does not say what its processor is able to do")
    found = torch.cpu.get_capabilities()
    for name in {flag for flag, _ in INSTRUCTION_SETS} | BF16 | INT8_DOT:
        theirs = TORCH_NAMES.get(name, name)
        if theirs in found:
            assert (name in capabilities()) == (found[theirs] is True), name


def test_looking_at_a_processor_does_not_wait_for_torch() -> None:
    script = (
        "import sys; from model_opt.compression.machine import inspect; inspect('cpu'); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("text", "best", "bf16", "dot"),
    [
        ("flags\t\t: fpu sse2 avx avx2", "avx2", False, False),
        ("flags\t\t: avx2 avx512f avx512bw", "avx512", False, False),
        ("flags\t\t: avx2 avx_vnni", "avx_vnni", False, True),
        ("flags\t\t: avx2 avx512f avx512_vnni", "avx512_vnni", False, True),
        ("flags\t\t: avx2 avx512f avx512_vnni avx512_bf16", "avx512_bf16", True, True),
        ("flags\t\t: avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16", "amx", True, True),
        ("Features\t: fp asimd asimddp", None, False, True),
        ("Features\t: fp asimd", None, False, False),
        ("Features\t: fp asimd asimddp i8mm bf16 sve", None, True, True),
    ],
)
def test_capabilities_are_read_from_cpuinfo(tmp_path: Path, text: str, best: str | None, bf16: bool, dot: bool) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\n{text}\n\nprocessor\t: 1\nflags\t\t: none\n")
    able = capabilities(tmp_path)
    assert bool(able & BF16) == bf16
    assert bool(able & INT8_DOT) == dot
    assert best is None or best_instruction_set(tmp_path) == best


def _group(root: Path, self_cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": self_cgroup, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "12:cpu,cpuacct:/jobs/one\n3:memory:/jobs/one\n0::/\n"
ONLY_ONE = [
    ("0::/jobs/one\n", {"sys/fs/cgroup/jobs/one/cpu.max": "150000 100000\n"}),
    ("0::/jobs/one\n", {"sys/fs/cgroup/jobs/one/cpu.max": "max 100000\n", "sys/fs/cgroup/jobs/cpu.max": "50000 50000"}),
    ("0::/docker/abc\n", {"sys/fs/cgroup/cpu.max": "100000 100000\n"}),
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "20000 100000\n"}),
    ("0::/../other\n", {"sys/fs/cgroup/cpu.max": "20000 100000\n"}),
    (
        V1,
        {
            f"sys/fs/cgroup/cpu,cpuacct/jobs/one/cpu.cfs_{n}_us": v
            for n, v in {"quota": "100000", "period": "90000"}.items()
        },
    ),
    (V1, {f"sys/fs/cgroup/cpu/cpu.cfs_{n}_us": v for n, v in {"quota": "50000", "period": "100000"}.items()}),
]


@pytest.mark.parametrize(("self_cgroup", "files"), ONLY_ONE)
def test_a_quota_leaves_its_whole_processors(tmp_path: Path, self_cgroup: str, files: dict[str, str]) -> None:
    assert usable_processors(_group(tmp_path, self_cgroup, files)) == 1


def test_no_quota_leaves_what_affinity_leaves(tmp_path: Path) -> None:
    free = usable_processors(tmp_path)
    assert free >= 1
    none = {"sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}
    assert usable_processors(_group(tmp_path, V1, none)) == free
    wide = {"sys/fs/cgroup/cpu.max": "90000000 1000\n"}
    assert usable_processors(_group(tmp_path, "0::/\n", wide)) == free


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/box\n", "sys/fs/cgroup/box/memory.max"),
        ("4:memory:/box\n", "sys/fs/cgroup/memory/box/memory.limit_in_bytes"),
    ],
)
def test_memory_is_what_the_machine_and_control_groups_leave(tmp_path: Path, groups: str, file: str) -> None:
    assert usable_memory(tmp_path) is None
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:       8388608 kB\nMemFree: 1 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    assert usable_memory(tmp_path) == 8 * 2**30
    (tmp_path / file).parent.mkdir(parents=True)
    for said, usable in (("2147483648\n", 2 * 2**30), ("max\n", 8 * 2**30), ("9223372036854771712\n", 8 * 2**30)):
        (tmp_path / file).write_text(said)
        assert usable_memory(tmp_path) == usable


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_affinity_counts() -> None:
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    script += "from model_opt.processors import usable_processors; print(usable_processors())"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"


def test_libraries_are_what_latency_depends_on() -> None:
    found = libraries()
    assert "torch" in found
    assert set(found) <= {"torch", *extras()}


@pytest.mark.parametrize(("device", "message"), [("tpu9", "no device"), ("meta", "not supported")])
def test_other_devices_are_refused(device: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        inspect(device)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InvalidInput, match="no GPU"):
        inspect("cuda:0")
