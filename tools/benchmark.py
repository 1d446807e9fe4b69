"""See `python tools/benchmark.py --help`; the benchmarks stand in the checkout alone, not in the wheel."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tool import main

if __name__ == "__main__":
    main()
