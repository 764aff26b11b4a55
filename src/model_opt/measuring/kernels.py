"""The search's kernels are compiled by a process that stands still while somebody times on this host."""

from model_opt.measuring.timing_lock import TimingLock
from model_opt.search.compiling import main, start_compiling


def compile_kernels() -> None:
    """See `start_compiling`: for processes on a machine where plans are measured."""
    start_compiling("model_opt.measuring.kernels")


if __name__ == "__main__":
    main(TimingLock().shared())
