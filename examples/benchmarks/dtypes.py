"""What fewer bits a value do to the quickstart's accuracy and bytes, in-process."""

from .quickstart_runs import Cases, compare

CASES: Cases = {
    dtype: {"preset": "guided", "threshold": "mass:0.7", "value-dtype": dtype}
    for dtype in ("float32", "float16", "int8")
}

if __name__ == "__main__":
    compare(CASES, "dtypes", __doc__)
