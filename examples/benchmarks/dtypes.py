"""What fewer bits a value do to the quickstart's accuracy and bytes, in-process."""

from .quickstart_runs import Cases, compare

CASES: Cases = {
    "float32": {},
    "float16": {"value-dtype": "float16"},
    "int8": {"value-dtype": "int8"},
}

if __name__ == "__main__":
    compare(CASES, "dtypes", __doc__)
