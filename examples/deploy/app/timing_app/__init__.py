"""FedAvg and AutoFLIP in turns; the repository and the quickstart are on the path."""
