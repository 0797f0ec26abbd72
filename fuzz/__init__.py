"""Coverage-guided fuzzing of everything that reads bytes from elsewhere.

``make fuzz`` runs all targets for a minute; ``python -m fuzz --help`` says more. A
target needs no fuzzer: the suite runs all of them on their seeds and on random changes.
"""
